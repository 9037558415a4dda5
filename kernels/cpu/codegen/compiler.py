"""Compile a kernel by numba's front end into the object code of one module, whose functions LLVM inlines as it likes.

numba compiles every function that a kernel calls by itself, down to machine code, and writes a wrapper around the
kernel that Python calls. Here the functions that a kernel calls are written into the kernel's own module, and optimized
and translated once, with it; and the wrapper is that of :mod:`vitnp.kernels.cpu.codegen.entry`. So a kernel takes a
third of the time to compile, and its machine code can be loaded without numba.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
import numba.extending
from llvmlite import ir
from numba.core import cgutils, compiler, types, typing
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.registry import cpu_target
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NopythonRewrites,
    NoPythonSupportedFeatureValidation,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)
from vitnp.kernels.cpu.codegen import entry
from vitnp.kernels.cpu.codegen.loader import Compiled
from vitnp.kernels.cpu.codegen.target import machine

if TYPE_CHECKING:
    from vitnp.kernels.cpu.codegen.jit import Intrinsic, Kernel, Part


class _Module(CPUCodeLibrary):
    """The LLVM module of one kernel, in the place of numba's library of code."""

    def __init__(self, name: str) -> None:
        super().__init__(cpu_target.target_context.codegen(), name)
        self.parts: dict[Any, tuple[Any, Any]] = {}  # signature and description by function, types and options
        self.kernels: dict[str, str] = {}  # symbols of kernels by those of their functions that the code calls

    def _optimize_functions(self, ll_module: llvm.ModuleRef) -> None:
        """Do nothing: functions are optimized with the module that they are part of."""
        ll_module.data_layout = self._codegen._data_layout

    def add_linking_library(self, library: CPUCodeLibrary) -> None:
        """Add the functions that numba itself compiles; its runtime is needed by none of the kernels."""
        from numba.core.runtime import rtsys

        if library is not rtsys.library:
            super().add_linking_library(library)

    def object_code(self, symbol: str, function: str) -> bytes:
        """Return the object file, which defines the entry `symbol` and `function`, as `symbol` + entry.SHARED."""
        module: Any = self._final_module
        exports = (symbol, symbol + entry.SHARED)
        for library in dict.fromkeys(self._linking_libraries):
            module.link_in(library._get_module_for_linking(), preserve=True)
        module.get_function(function).name = exports[1]
        for defined in module.functions:
            if not defined.is_declaration and defined.name not in exports:
                defined.linkage = "internal"
        for variable in module.global_variables:
            if not variable.is_declaration:
                variable.linkage = "internal"
        self._optimize_final_module()
        module.verify()
        self._finalized = True
        return machine().emit_object(module)

    def externals(self) -> tuple[str, ...]:
        """Return the symbols that the optimized code needs."""
        module: Any = self._final_module
        declared = [*module.functions, *module.global_variables]
        return tuple(value.name for value in declared if value.is_declaration and not value.name.startswith("llvm."))


class _Pipeline(compiler.CompilerBase):
    """The passes of numba that kernels need, down to LLVM's language."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("kernel")
        for each in (
            TranslateByteCode, FixupArgs, IRProcessing, RewriteSemanticConstants, DeadBranchPrune, GenericRewrites,
            ReconstructSSA, DeadBranchPrune, NopythonTypeInference, PreLowerStripPhis, NopythonRewrites,
            NoPythonSupportedFeatureValidation, IRLegalization, NativeLowering,
        ):  # fmt: skip
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


_modules: list[_Module] = []  # of the kernels that are being compiled, one for another


@global_compiler_lock
def compile_kernel(kernel: Kernel) -> Compiled:
    """Compile a kernel: the function of its symbol, for Python to call, and if it is shared, that for other kernels."""
    symbol = kernel.symbol
    module = _Module(symbol)
    _modules.append(module)
    collecting = gc.isenabled()
    gc.disable()  # there is a lot that it would look at, again and again, and nothing to collect
    try:
        arguments = tuple(argument.to_numba() for argument in kernel.signature)
        signature, description = _lower(kernel.function, arguments, kernel.options)
        context = _context(kernel.options)
        entry.add_entry(context, module, symbol, kernel.signature, signature, description)
        code = module.object_code(symbol, description.llvm_func_name)
        externals = tuple(name for name in module.externals() if name not in module.kernels)
        return Compiled(code, signature.return_type.name, tuple(module.kernels.values()), externals)
    finally:
        _modules.pop()
        if collecting:
            gc.enable()


def _flags(options: dict[str, Any]) -> Any:
    flags: Any = compiler.Flags()
    flags.enable_pyobject = flags.enable_looplift = flags.boundscheck = flags.nrt = False
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    # A division by zero gives infinity, as in NumPy, instead of an exception.
    flags.error_model, flags.fastmath = "numpy", options["fastmath"]
    return flags


def _context(options: dict[str, Any]) -> Any:
    return compiler._make_subtarget(cpu_target.target_context, _flags(options))


def _lower(function: Callable, arguments: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Write a function for types of arguments into the module; return its signature and numba's description."""
    module = _modules[-1]
    key = function, tuple(arguments), str(options)
    if key not in module.parts:
        pipeline = _Pipeline(
            cpu_target.typing_context, cpu_target.target_context, module, tuple(arguments), None, _flags(options), {}
        )
        state = pipeline.state
        lowered = pipeline.compile_extra(function)
        module.parts[key] = typing.signature(state.return_type, *arguments), lowered.fndesc
    return module.parts[key]


def type_of_intrinsic(intrinsic: Intrinsic) -> Any:
    """Return numba's type of a function that generates code."""
    return _type_of(intrinsic.function)


def type_of_part(part: Part) -> Any:
    """Return numba's type of a function that becomes part of the kernels that call it."""

    def call(typing_context: Any, *arguments: Any) -> tuple[Any, Callable]:
        signature, _ = _lower(part.function, arguments, part.options)

        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
            _, description = _lower(part.function, arguments, part.options)  # numba asks for the type only once
            return context.call_internal(builder, description, signature, values)

        return signature, generate

    return _function_type(part.function, call)


def type_of_shared(kernel: Kernel) -> Any:
    """Return numba's type of a kernel that other kernels call by its symbol."""
    symbol = kernel.symbol + entry.SHARED
    name = kernel.result()
    result = types.boolean if name == "bool" else getattr(types, name)  # older numba has no types.bool
    signature = result(*[argument.to_numba() for argument in kernel.signature])

    def call(typing_context: Any, *arguments: Any) -> tuple[Any, Callable]:
        def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: Sequence[ir.Value]) -> ir.Value:
            _modules[-1].kernels[symbol] = kernel.symbol
            function_type = context.call_conv.get_function_type(signature.return_type, signature.args)
            function = cgutils.get_or_insert_function(builder.module, function_type, symbol)
            status, value = context.call_conv.call_function(
                builder, function, signature.return_type, signature.args, arguments
            )
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return signature, generate

    return _function_type(kernel.function, call)


def _function_type(function: Callable, call: Callable) -> Any:
    """Return numba's type of a function with the parameters of another one, whose calls `call` types and generates."""
    parameters = [inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += inspect.signature(function).parameters.values()
    call.__name__ = function.__name__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return _type_of(call)


def _type_of(function: Callable) -> Any:
    handle = numba.extending.intrinsic(function)
    cpu_target.typing_context.refresh()
    return cpu_target.typing_context.resolve_value_type(handle)
