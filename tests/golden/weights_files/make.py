"""Writes the files of this folder: python tests/golden/weights_files/make.py (needs torch and safetensors).

Beside every NAME.pt stands NAME.npz with the same tensors under the names that our reader gives them; bfloat16 is
stored there as its bits in uint16.
"""

import argparse
import collections
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)


def write(name, saved, tensors, legacy=False):
    torch.save(saved, HERE / f"{name}.pt", _use_new_zipfile_serialization=not legacy)
    expected(name, tensors)


def expected(name, tensors):
    arrays = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        arrays[key] = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    np.savez(HERE / f"{name}.npz", **arrays)


def every_dtype():
    return collections.OrderedDict(
        float64=torch.randn(2, 3, dtype=torch.float64),
        float32=torch.randn(3, 2),
        float16=torch.randn(5).half(),
        bfloat16=torch.randn(2, 2).bfloat16(),
        int64=torch.arange(-2, 3),
        int32=torch.arange(3, dtype=torch.int32),
        int16=torch.arange(4, dtype=torch.int16),
        int8=torch.arange(-3, 0, dtype=torch.int8),
        uint8=torch.arange(5, dtype=torch.uint8),
        uint16=torch.tensor([0, 1, 65535], dtype=torch.uint16),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 4),
    )


def views():
    """Tensors that share storages, start inside them, and are not contiguous."""
    base = torch.arange(24, dtype=torch.float32)
    return collections.OrderedDict(
        whole=base,
        rows=base.view(4, 6)[1:3],
        transposed=base.view(4, 6).t(),
        strided=base[1::5],
        tied=base,
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
    )


def training():
    """What a training script saves: networks, an optimizer, its arguments, numpy's numbers."""
    student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = dict(
        student=collections.OrderedDict((f"module.{k}", v) for k, v in student.state_dict().items()),
        teacher=teacher.state_dict(),
        optimizer=optimizer.state_dict(),
        epoch=3,
        loss=np.float64(0.25),
        best=np.array([1.0, 2.0]),
        args=argparse.Namespace(arch="vit_small", lr=1e-3, crops=(0.4, 1.0), out=pathlib.PurePosixPath("out")),
        device=torch.device("cpu"),
        size=torch.Size([2, 3]),
        kept={1, 2},
    )
    tensors = {f"student/module.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"teacher/{k}": v for k, v in teacher.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/state/{i}/{k}": v for k, v in state.items()}
    return saved, tensors


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 4, 2, bias=False)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("resolution", torch.tensor(224))

    def forward(self, image):
        x = self.patch(image).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return x * self.scale


if __name__ == "__main__":
    dtypes = every_dtype()
    write("dtypes", dtypes, dtypes)
    save_file(dict(dtypes), HERE / "dtypes.safetensors", metadata={"format": "pt"})
    del dtypes["uint16"]  # newer than the legacy format
    write("dtypes_legacy", dtypes, dtypes, legacy=True)
    for legacy, suffix in ((False, ""), (True, "_legacy")):
        tensors = views()
        write(f"views{suffix}", tensors, tensors, legacy)
        saved, tensors = training()
        write(f"training{suffix}", saved, tensors, legacy)

    tower = Tower().half()
    torch.jit.save(torch.jit.script(tower), str(HERE / "torchscript.pt"))
    expected("torchscript", tower.state_dict())
    torch.save(Tower(), HERE / "whole_model.pt")
