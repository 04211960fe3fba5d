"""Numbers in few bits: codes, and a scale for each block of them."""

from jaxpeft.quant.blockwise import Blockwise, dequantize, quantize, zeros
from jaxpeft.quant.chunks import in_chunks

__all__ = ["Blockwise", "dequantize", "in_chunks", "quantize", "zeros"]
