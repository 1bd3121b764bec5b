"""The names that options may take. Needs nothing but Python, so that they are known before PyTorch is loaded."""

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("fp32", "bf16", "fp16")
SPLITS = ("train", "val", "test")
METHODS = ("shallow", "dense", "dense-everywhere", "telescopic", "lora", "decoder", "full", "san", "cris")
PLACEMENTS = ("VL", "V", "VLC")  # vision, language, conditioning; the first is the default
VARIANTS = ("original", "released")  # of a baseline's net; the first is the default
PRODUCT, PAPER = PROTOCOLS = ("product", "paper")  # whose settings a training takes where none are given
GRIDS = ("picture", "enlarged", "square")  # on which masks are compared; the first is the default
LOSSES = ("logits", "reference")
PLACES_OF_ACTIVATIONS = ("auto", "memory", "disk", "none")
HALF = 127  # of a mask's grey values, above which a pixel belongs to it
BASE_ALONE = "none"  # in place of an adapter, or of a method
SMALL_BASE = "small"  # in place of a base: one with random weights, made when it is needed
