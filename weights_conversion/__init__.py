"""Published PyTorch checkpoints to this project's weights, without PyTorch."""

from weights_conversion.convert import ConversionError, convert_mast3r, infer_config
from weights_conversion.inert_pickle import ArchiveError
from weights_conversion.retrieval import convert_retrieval
from weights_conversion.tensors import load_tensors, read_pickle
from weights_conversion.torch_archive import read_torch_archive

__all__ = [
    "ArchiveError",
    "ConversionError",
    "convert_mast3r",
    "convert_retrieval",
    "infer_config",
    "load_tensors",
    "read_pickle",
    "read_torch_archive",
]
