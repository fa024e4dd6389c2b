"""What a file may declare before anything is allocated for it. All limits of model files are here."""

from __future__ import annotations

METADATA_BYTES = 16 << 20  # of the text that an exported file carries, and of a manifest
ENTRIES = 1 << 16  # of an archive; fields of an ONNX model, the graph's own apart
ARCHIVE_GROWTH = 8  # an archive's members may be so many times as large as the file
ARCHIVE_BYTES = 64 << 20  # and that much more: small files compress well
FIELDS = 1 << 19  # of an ONNX file in all: two bytes can be a field, of which a library keeps 150
NESTING = 32  # of graphs in an ONNX graph

N_FFT = 1 << 20  # samples of a window
SAMPLE_RATE = 1 << 22  # Hz
FRAMES = 1 << 20  # of a chunk
STEMS = 256
STATES = 4096  # tensors that go from chunk to chunk
STATE_SIZES = 8  # of the shape of one
STATE_NAME = 200  # characters
CHUNK_BYTES = 4 << 30  # of the network's input and output for one chunk, float32
