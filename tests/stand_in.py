"""A GPU for machines that have none. Its tensors say `cuda:0`, are encoded and trained on as those of a GPU
are, and keep their numbers on the CPU; what a GPU refuses (a tensor that was left on the CPU, a generator of
the CPU) is refused, autocast to bf16 casts, and what the CPU asks of it is counted. What it cannot show: a
kernel's own rounding, memory, speed. PyTorch's interface for backends in Python, that it stands on, may
change; `missing` tells.
"""

import contextlib
import functools
from collections import Counter
from unittest import mock

import torch
import torch.utils.backend_registration as backends
from torch.utils._python_dispatch import TorchDispatchMode

NAME, CUDA, aten = "standin", torch.device("cuda:0"), torch.ops.aten
# What CUDA's autocast does, of the operations that the tests come across
# (https://docs.pytorch.org/docs/stable/amp.html)
LOWER = "conv1d conv2d linear matmul mm bmm addmm baddbmm mv scaled_dot_product_attention".split()
FULL = """softmax.int log_softmax.int layer_norm native_layer_norm group_norm exp expm1 log log1p
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rsqrt reciprocal softplus nll_loss cumsum cumprod sum
    sum.dim_IntList prod norm.Scalar norm.ScalarOpt_dim mse_loss cdist logsumexp linalg_vector_norm""".split()
WIDEST = "addcmul addcdiv cat stack dot index_put scatter_add tensordot".split()
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
ANSWERS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default,
           aten.masked_select.default}


def missing():
    "Why there is no stand-in here; None where there is"
    if torch.cuda.is_available(): return "this machine has a GPU: make test-gpu"
    if lost := [
        n for n in ("_ensureCUDADeviceGuardSet", "_set_only_lift_cpu_tensors") if not hasattr(torch._C, n)]:
        return f"this PyTorch has no torch._C.{lost[0]}"
    return (
        None
        if hasattr(backends, "_setup_privateuseone_for_python_backend")
        else "this PyTorch has no backends written in Python")


class OtherDevice(RuntimeError): "What CUDA refuses: tensors or generators of two devices"


class GPUTensor(torch.Tensor):
    "A tensor of the stand-in, with its numbers in `raw`"
    @staticmethod
    def __new__(cls, raw):
        t = torch.Tensor._make_wrapper_subclass(cls, raw.size(), strides=raw.stride(),
                                                storage_offset=raw.storage_offset(), dtype=raw.dtype,
                                                device=f"{NAME}:0")
        t.raw = raw
        return t

    device, is_cuda = property(lambda self: CUDA), property(lambda self: True)

    def __repr__(self, **kwargs): return f"GPU{self.raw!r}"

    def tolist(self):
        StandIn.counts["answers"] += 1
        return self.raw.tolist()

    def numpy(self, **kwargs): raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def ours(x): return isinstance(x, GPUTensor)


def mapped(f, x):
    "`f` of every tensor in nested lists"
    if isinstance(x, torch.Tensor): return f(x)
    return type(x)(mapped(f, y) for y in x) if isinstance(x, (list, tuple)) else x


def flat(xs):
    "The tensors in nested lists"
    return [
        y
        for x in xs
        for y in (flat(x) if isinstance(x, (list, tuple)) else [x] if isinstance(x, torch.Tensor) else [])]


def refuse(func, args, tensors):
    "What CUDA does not mix: it takes numbers and indices from the CPU, nothing else"
    if any(isinstance(x, torch.Generator) for x in args):
        raise OtherDevice(f"{func}: a generator of the CPU, expected one of cuda")
    rest = [args[0], *args[2:]] if func in INDEXING else tensors
    left = [
        tuple(x.shape)
        for x in rest
        if isinstance(x, torch.Tensor) and not ours(x) and (x.dim() or x is args[0])]
    if left and func not in COPIES:
        raise OtherDevice(f"{func}: a tensor of shape {left[0]} on the CPU, others on cuda")


def count(func, args, here, there):
    "Note copies up to the GPU, and answers that the CPU has to wait for"
    masks = func in INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
    if func in COPIES and here != there: StandIn.counts["up" if there else "answers"] += 1
    elif here and (func in ANSWERS or masks): StandIn.counts["answers"] += 1


def compute(func, args, kwargs):
    "The operation, on the CPU"
    tensors = flat([args, tuple(kwargs.values())])
    here, to = any(map(ours, tensors)), kwargs.get("device")
    there = torch.device(to).type in ("cuda", NAME) if to is not None else here
    if here and there or there and not tensors: refuse(func, [*args, *kwargs.values()], tensors)
    raw = lambda x: x.raw if ours(x) else x
    if to is not None: kwargs = kwargs | dict(device="cpu")
    out = func(*mapped(raw, args), **{k: mapped(raw, x) for k, x in kwargs.items()})
    if func is aten.copy_.default: here, there = ours(args[1]), ours(args[0])
    count(func, args, here, there)
    if func is aten.copy_.default: return args[0]
    if func in ANSWERS and not isinstance(out, torch.Tensor) or not there: return out
    known = {id(x.raw): x for x in tensors if ours(x)}  # what an operation in place gives back
    return mapped(lambda x: known[id(x)] if id(x) in known else GPUTensor(x), out)


class Module(backends._DummyBackendModule):
    "What PyTorch asks of a backend's module"
    def get_amp_supported_dtype(self): return [torch.bfloat16, torch.float16]

    def __getattr__(self, name): return getattr(torch.cpu, name)


def casting(op, to):
    "An operation that first casts its floating-point tensors, as autocast would"
    own = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    may = lambda x: ours(x) and x.is_floating_point() and x.dtype != torch.float64
    def run(*args, **kwargs):
        dtypes = [x.dtype for x in flat([args, tuple(kwargs.values())]) if may(x)]
        cast = (lambda x: x.to(to(dtypes)) if may(x) else x) if dtypes else (lambda x: x)
        with torch._C._ExcludeDispatchKeyGuard(own):
            return op(*mapped(cast, args), **{k: mapped(cast, x) for k, x in kwargs.items()})
    return run


@functools.cache
def register():
    """Make the backend known to PyTorch, once in a process and before its first backward pass; the libraries
    live as long as what is returned"""
    backends._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    torch._C._ensureCUDADeviceGuardSet()
    ops, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    rules = ((LOWER, lambda dtypes: torch.get_autocast_dtype(NAME)), (FULL, lambda dtypes: torch.float32),
             (WIDEST, lambda dtypes: functools.reduce(torch.promote_types, dtypes)))
    for names, to in rules:
        for op in names:
            packet, _, overload = op.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            ops.impl(op, casting(op, to), "AutocastPrivateUse1")
    return ops, rest


class StandIn(TorchDispatchMode):
    "Within `with StandIn():` this machine has one GPU, `cuda`; `counts` says what it did"
    counts = Counter()

    def __init__(self, capability=(8, 0)):
        register()
        super().__init__()
        self.capability, self.stack = capability, contextlib.ExitStack()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})

    def __enter__(self):
        answers = dict(is_available=True, _lazy_init=None, get_device_name="stand-in", synchronize=None,
                       max_memory_allocated=0, reset_peak_memory_stats=None, device_count=1, current_device=0,
                       get_device_capability=self.capability, mem_get_info=(2**34, 2**34))
        for name, answer in answers.items():
            self.stack.enter_context(
                mock.patch.object(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer))
        autocast = torch.autocast.__init__
        self.stack.enter_context(
            mock.patch.object(
                torch.autocast,
                "__init__",
                lambda s, kind, *args, **kwargs: autocast(
                    s, NAME if kind == "cuda" else kind, *args, **kwargs)))
        torch._C._set_only_lift_cpu_tensors(True)
        self.stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        StandIn.counts.clear()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self.stack.close()
