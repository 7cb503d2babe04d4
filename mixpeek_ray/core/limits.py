"""The platform's fixed limits, each with its unit and its reason."""

from __future__ import annotations

GIB = 1024**3
MIB = 1024**2
KIB = 1024

# The product's promise; 10 GiB so that both readings of "10 GB" fit.
MAX_ARCHIVE_BYTES = 10 * GIB
# The product's promise.
MAX_MODELS_PER_NAMESPACE = 50
# More than anyone tells apart; each is a record that a restarted registry reads.
MAX_ALIASES_PER_NAMESPACE = 200
# Earlier targets that an alias remembers, so that its record stays within a few hundred KB.
MAX_ALIAS_HISTORY = 50
# Shares finer than a millionth are below what any traffic shows.
MAX_ALIAS_WEIGHT = 1_000_000
# Longer than any session's or user's id.
MAX_STICKY_CHARS = 256

# A multipart form repeats the file's size plus its fields and boundaries: what a body may hold beyond the archive.
MAX_FORM_OVERHEAD_BYTES = 1 * MIB
# An upload has 9 known fields; anything near this number is an attack on the parser.
MAX_FORM_FIELDS = 32
# The longest legitimate field is a 64-character name.
MAX_FORM_FIELD_BYTES = 4 * KIB
# A resumable upload: as many parts as S3 takes, so parts of 1 MiB still make the largest archive.
MAX_UPLOAD_PARTS = 10_000
# The part size a client is advised to use: little is lost with a connection, and a part's own cost stays small.
UPLOAD_PART_BYTES = 64 * MIB
# Open ones hold disk space that no quota counts yet; nobody sends more archives than this at a time.
MAX_OPEN_UPLOADS_PER_NAMESPACE = 20

# JSON bodies of management routes carry a few hundred bytes.
MAX_JSON_BODY_BYTES = 1 * MIB

# Inference: 2,048 texts of 1,024 tokens, twice what most models read, take about 10 MB.
MAX_INFERENCE_BODY_BYTES = 16 * MIB
# Values that one body may hold, a list or an object counted as three: up to 150 bytes each while it is parsed. 2,048
# lists of 512 token ids are 1,050,000.
MAX_INFERENCE_VALUES = 1_400_000
# Of one text: ten times what an 8,192-token model reads of it. A million take a second to tokenize.
MAX_TEXT_CHARS = 400_000
# A request to a custom model's endpoint: as many texts as the built-in models take by default.
MAX_SERVABLE_TEXTS = 2_048
# A batch of 64 images of 3 x 512 x 512 in uint8 takes 50 MB.
MAX_TENSOR_BODY_BYTES = 64 * MIB
# A catalog may allow this many inputs a request; each model's own limit is usually lower.
MAX_INPUTS = 100_000

# Strict tar reader (hardening.md): a real model archive stays far inside every one of these.
MAX_ARCHIVE_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 20 * GIB
# Text-like config files compress well, weights do not: past 64 MiB a ratio of 50 is a bomb.
MAX_INFLATE_RATIO = 50
INFLATE_RATIO_FLOOR_BYTES = 64 * MIB
MAX_PATH_PART_BYTES = 255
MAX_PATH_BYTES = 1_024
MAX_PATH_DEPTH = 16
MAX_EXTENDED_HEADER_BYTES = 64 * KIB
MAX_EXTENDED_HEADERS_TOTAL_BYTES = 1 * MIB

# The wire contract's ranges for a model's resource request.
MIN_CPUS = 0.1
MAX_CPUS = 64.0
MAX_GPUS = 8
MAX_MEMORY_BYTES = 1024 * GIB
MIN_MEMORY_BYTES = 1 * MIB
DEFAULT_CPUS = 1.0
DEFAULT_MEMORY_BYTES = 4 * GIB
