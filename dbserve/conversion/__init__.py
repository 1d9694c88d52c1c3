"""An existing network as the start of a job: a local directory as `transformers` or `diffusers` writes it. No torch.

Its config.json is read as it is, with the defaults of those libraries written down here: importing their configuration
classes imports torch, which the control plane must not.

sources: the directory and its settings; networks: config.json -> options, one reader a model type; weights: which
tensors a layer is made of, and whether they are there.
"""

from dbserve.conversion.networks import Source, read_source
from dbserve.conversion.submitted import with_source
from dbserve.conversion.weights import LayerMap, StoredTensor, layer_map, root_of, stored_tensors

__all__ = ["LayerMap", "Source", "StoredTensor", "layer_map", "read_source", "root_of", "stored_tensors", "with_source"]
