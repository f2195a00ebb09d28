"""How token ids lie on disk."""

import numpy as np

#: Name in a manifest -> dtype, little-endian whatever the machine.
DTYPES: dict[str, "np.dtype[np.unsignedinteger]"] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
