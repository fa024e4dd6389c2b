"""Parity for people and machines: text, Markdown, JUnit XML, and the HTML page."""
