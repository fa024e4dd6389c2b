"""Parity: how much an artifact lost against the eager network, in dB, on which stem."""

from tfswa.runtime.gates import Gate as Gate
from tfswa.runtime.gates import Gates as Gates
from tfswa.runtime.gates import gate_for as gate_for
from tfswa.runtime.gates import load_gates as load_gates
from tfswa.runtime.model.keys import EVIDENCE as EVIDENCE
from tfswa.runtime.parity.candidates import Candidate as Candidate
from tfswa.runtime.parity.certificate import Certificate as Certificate
from tfswa.runtime.parity.compare import certify as certify
from tfswa.runtime.parity.compare import compare as compare
from tfswa.runtime.parity.corpus import Item as Item
from tfswa.runtime.parity.corpus import adversaries as adversaries
from tfswa.runtime.parity.corpus import songs as songs
from tfswa.runtime.parity.evidence import describe_evidence as describe_evidence
from tfswa.runtime.parity.evidence import passing as passing
from tfswa.runtime.parity.evidence import read_certificates as read_certificates
from tfswa.runtime.parity.evidence import read_evidence as read_evidence
from tfswa.runtime.parity.evidence import require_passing as require_passing
from tfswa.runtime.parity.evidence import store as store
from tfswa.runtime.parity.judge import Breach as Breach
from tfswa.runtime.parity.judge import judge as judge
from tfswa.runtime.parity.judge import passes as passes
from tfswa.runtime.parity.reference import load_reference as load_reference
