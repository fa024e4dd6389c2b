"""Quality on songs with true stems: ``evaluate`` runs it, ``scores`` says what is measured."""
