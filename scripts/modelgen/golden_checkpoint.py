"""What a golden model's checkpoint folder says on top of what transformers writes there."""

import json

import torch
from safetensors.torch import load_file, save_file


def save(model, folder, extras):
    model.save_pretrained(folder)
    if extras.get("prediction"):
        _add_prediction_layer(model, folder)
    _patch_config(folder, extras.get("config", {}))


def save_mxfp4(model, blocks, folder):
    """The same checkpoint with the experts as published ones have them."""
    tensors = {k: v for k, v in model.state_dict().items() if k + "_blocks" not in blocks}
    # Blocks before scales of each matrix: the converter takes them in that order.
    tensors.update(sorted(blocks.items()))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    _patch_config(folder, {"quantization_config": {"quant_method": "mxfp4"}})


def _patch_config(folder, patch):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **patch}, indent=1))


def _add_prediction_layer(model, folder):
    """GLM's multi-token prediction: a block like the last, past the end, with more tensors."""
    path = folder / "model.safetensors"
    tensors, n = load_file(path), model.config.num_hidden_layers
    hidden = model.config.hidden_size
    last, extra = f"model.layers.{n - 1}.", f"model.layers.{n}."
    for name in [name for name in tensors if name.startswith(last)]:
        tensors[name.replace(last, extra)] = tensors[name].clone()
    tensors[extra + "eh_proj.weight"] = torch.ones(hidden, 2 * hidden)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        tensors[extra + norm + ".weight"] = torch.ones(hidden)
    save_file(tensors, path)
    _patch_config(folder, {"num_nextn_predict_layers": 1})
