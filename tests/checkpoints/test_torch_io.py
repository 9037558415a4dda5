"""The torch reader on files that torch wrote, on hostile files and on damaged ones."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import resource
import runpy
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.checkpoints.pickled_objects import Placeholder
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.checkpoints.torch_io import LEGACY_MAGIC, read_torch_file
from vitnp.errors import CheckpointError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
FILES = GOLDEN / "torch_files"
EXPECTED = runpy.run_path(str(GOLDEN / "make_torch_files.py"))


@pytest.fixture(params=["zip", "legacy"])
def container(request):
    return request.param


def same(actual, expected):
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)


def test_state_dict(container):
    read = read_torch_file(FILES / f"plain_{container}.pth")
    expected = EXPECTED["vit_arrays"](0)
    assert list(read) == list(expected)
    for name, array in expected.items():
        same(read[name], array)


def test_every_storage_type_and_every_stride(container):
    read = read_torch_file(FILES / f"odd_{container}.pth")
    expected = EXPECTED["odd_arrays"]()
    assert set(read["tensors"]) == set(expected)
    for name, array in expected.items():
        if name == "type_bfloat16":  # keeps 8 of 24 bits, rounded
            np.testing.assert_allclose(read["tensors"][name], array, rtol=2**-8)
            bits = read["tensors"][name].view(np.uint32)
            assert not (bits & 0xFFFF).any() and read["tensors"][name].dtype == np.float32
        else:
            same(read["tensors"][name], array)
        assert not read["tensors"][name].size or not read["tensors"][name].flags.writeable
    assert read["shape"] == (3, 20)
    same(read["parameter"], np.arange(3, dtype=np.float32))


def test_training_checkpoint_keeps_data_and_constructs_nothing(container):
    read = read_torch_file(FILES / f"training_{container}.pth")
    assert set(read) == {"student", "teacher", "optimizer", "epoch", "args", "best"}
    assert read["epoch"] == 3
    assert type(read["args"]) is Placeholder and read["args"].name == "argparse.Namespace"
    assert type(read["best"]) is Placeholder and read["best"].name.endswith("multiarray.scalar")
    same(read["teacher"]["backbone.cls_token"], EXPECTED["vit_arrays"](2)["cls_token"])
    assert read["teacher"]["head.mlp.1.num_batches_tracked"] == 7
    assert read["optimizer"]["param_groups"][0]["params"] == [0]


@pytest.mark.parametrize("file", ["legacy_2", "zip_2", "zip_5"])
def test_what_training_code_saves_beside_the_weights_is_put_aside(file):
    """The files were written by torch, in three forms of pickle."""
    read = read_torch_file(FILES / f"surrounded_{file}.pth")
    expected = EXPECTED["vit_arrays"](3)
    assert len(read["model"]) == len(expected)
    for name, array in read["model"].items():
        for part in ("_checkpoint_wrapped_module.", "_orig_mod.", "module."):
            name = name.replace(part, "")
        same(array, expected[name])
    placeholders = [*read["paths"], *read["namespaces"], *read["arrays"], *read["scalars"][:3], *read["generators"]]
    assert {type(value) for value in placeholders} == {Placeholder}
    assert type(read["devices"]["cuda:0"]) is Placeholder and len(read["devices"]) == 1
    assert list(read["defaultdicts"][0]) == ["loss"] and read["nested"] == {"a": {"b": 1}}
    assert read["tuples as keys"] == {None: 1, 2.5: 2, True: 3}


def test_keys_that_could_collide_or_overflow_are_dropped(tmp_path):
    deep_tuple = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."
    modulus = 2**61 - 1  # integers that differ by multiples of it have the same hash
    items = b"".join(pickle.dumps(i * modulus, 2)[2:-1] + b"N" for i in range(1, 2000))
    for pickled in (deep_tuple, b"\x80\x02}(" + items + b"u."):
        for path in (legacy(tmp_path, pickled), archive(tmp_path, {"a/data.pkl": pickled})):
            assert read_torch_file(path) == {}
    memos = b"".join(b"Np%d\n0" % (i * modulus) for i in range(1, 100))
    for path in both(tmp_path, b"\x80\x02" + memos + b"}."):
        with pytest.raises(CheckpointError, match="memo"):
            read_torch_file(path)


def test_tensors_that_are_negated_when_read_are_refused(tmp_path):
    negated = b"I00\nccollections\nOrderedDict\n(tR}X\x03\x00\x00\x00neg\x88stR."
    pickled = tensor_pickle()[: -len(b"I00\nccollections\nOrderedDict\n(tRtR.")] + negated
    for path in both(tmp_path, pickled):
        with pytest.raises(CheckpointError, match="resolve_neg"):
            read_torch_file(path)


def test_torchscript_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="TorchScript.*state dict"):
        read_torch_file(archive(tmp_path, {"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"\x80\x02)."}))


def test_a_zip_directory_longer_than_that_of_any_checkpoint_is_not_read(tmp_path, monkeypatch):
    path = archive(tmp_path, {"a/data.pkl": b"\x80\x02}.", **{f"a/data/{i}": b"" for i in range(100)}})
    assert read_torch_file(path) == {}
    monkeypatch.setattr("vitnp.checkpoints.torch_io._MAX_DIRECTORY_BYTES", 5000)
    with pytest.raises(CheckpointError, match="directory is too long"):
        read_torch_file(path)


def test_a_pickle_longer_than_that_of_any_checkpoint_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("vitnp.checkpoints.safe_unpickler.MAX_PICKLE_BYTES", 1000)
    for pickled in (b"\x80\x02" + b"N0" * 500 + b"}.", b"c" + b"x" * 2000, pickle.dumps("x" * 2000, 2)):
        with pytest.raises(CheckpointError, match="damaged|no end"):
            read_torch_file(legacy(tmp_path, pickled))


def test_python_2_dicts_and_pickles_of_protocol_0(tmp_path):
    pairs = b"(lp0\n(lp1\nS'a'\np2\naI1\naa"
    path = legacy(tmp_path, b"ccollections\nOrderedDict\n(" + pairs + b"tR.")
    assert read_torch_file(path) == {"a": 1}


def test_storage_views_of_old_torch(tmp_path):
    storage = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06"
    view = b"(X\x01\x00\x00\x00vK\x02K\x03ttQ"
    tensor = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + storage[2:] + view + b"K\x00K\x03\x85K\x01\x85tR."
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes()
    same(read_torch_file(legacy(tmp_path, tensor, tail)), np.array([2, 3, 4], np.float32))


def test_big_endian_archives(tmp_path):
    source = zipfile.ZipFile(FILES / "plain_zip.pth")
    entries = {}
    for name in source.namelist():
        content = source.read(name)
        if "/data/" in name:
            content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
        entries[name] = b"big" if name.endswith("byteorder") else content
    assert any(name.endswith("byteorder") for name in entries)
    read = read_torch_file(archive(tmp_path, entries))
    for name, array in EXPECTED["vit_arrays"](0).items():
        same(read[name], array)


# ---- hostile files -------------------------------------------------------------------------------------------------


def legacy(folder, pickled, tail=b"\x80\x02]."):
    """Write a pickle in the older container."""
    path = folder / "legacy.pth"
    begin = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(begin + pickled + tail)
    return path


def archive(folder, entries, compression=zipfile.ZIP_STORED):
    path = folder / "archive.pth"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "global": b"cos\nsystem\n(X\x05\x00\x00\x00touchtR.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
    "posix": b"cposix\nsystem\n(S'touch'\ntR.",
    "inst": b"(S'touch'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\nS'touch'\n\x85\x81.",
    "newobj_ex": b"\x80\x04csubprocess\nPopen\nS'touch'\n\x85}\x92.",
    "build": b"\x80\x02cargparse\nNamespace\n)\x81}X\x0a\x00\x00\x00__reduce__cos\nsystem\nsb.",
    "setattr": b"cbuiltins\nsetattr\n(ctorch\nSize\nS'x'\nI1\ntR.",
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "py2 eval": b"c__builtin__\neval\n(S'1'\ntR.",
    "getattr through a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x0fabc.sys.modules\x93.",
    "import": b"cimportlib\nimport_module\n(S'os'\ntR.",
    "torch.load": b"ctorch\nload\n(S'x'\ntR.",
    "numpy beyond what checkpoints need": b"cnumpy\nload\n(S'x'\ntR.",
    "code": b"cmarshal\nloads\n(S'x'\ntR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_other_global_is_refused_by_name(tmp_path, name, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("code was run"))
    pickled = HOSTILE[name]
    for path in (legacy(tmp_path, pickled), archive(tmp_path, {"a/data.pkl": pickled})):
        with pytest.raises(
            CheckpointError, match="asks for the Python object '[a-zA-Z_0-9.]+': a checkpoint must never run code"
        ):
            read_torch_file(path)


def test_real_malicious_pickles_leave_no_trace(tmp_path):
    target = tmp_path / "trace"
    for function, arguments in ((exec, (f"open({str(target)!r}, 'w')",)), (open, (str(target), "w"))):
        for protocol in range(6):
            pickled = pickle.dumps({"cls_token": Call(function, *arguments)}, protocol)
            for path in (legacy(tmp_path, pickled), archive(tmp_path, {"a/data.pkl": pickled})):
                with pytest.raises(CheckpointError, match="must never run code"):
                    read_torch_file(path)
    # Also in place of the magic number, the first object of the older container.
    path = tmp_path / "first.pth"
    path.write_bytes(pickle.dumps(Call(open, str(target), "w"), 2))
    with pytest.raises(CheckpointError):
        read_torch_file(path)
    assert not target.exists()


REFUSED = {
    "extension registry": b"\x80\x02\x82\x01.",
    "extension registry, 4 bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "text persistent id": b"Pmodule\n.",
    "module persistent id": (
        b"\x80\x02(X\x06\x00\x00\x00modulecargparse\nNamespace\nX\x01\x00\x00\x00fX\x01\x00\x00\x00stQ."
    ),
    "out-of-band buffer": b"\x80\x05\x97.",
    "call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "call of a storage type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "state of a string": b"\x80\x02X\x01\x00\x00\x00a}b.",
    "tensor over a tensor": b"ctorch._utils\n_rebuild_tensor\n((lI0\n(I4\nt(I1\nttR.",
    "endless instructions": b"N0" * 510_000 + b".",
    "no end": b"}",
    "empty stack": b"0.",
    "unknown memo": b"h\x07.",
    "unknown instruction": b"\xff.",
    "a string longer than the file": b"\x80\x02X\xff\xff\xff\x7fa.",
    "bytes of 2^63": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
    "a memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f",
    "odd dict": b"(I1\nd.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_pickles_are_refused_in_one_sentence(tmp_path, name):
    for path in (legacy(tmp_path, REFUSED[name]), archive(tmp_path, {"a/data.pkl": REFUSED[name]})):
        with pytest.raises(CheckpointError) as caught:
            read_torch_file(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.slow(reason="deep recursion in a process of its own")
def test_deep_nesting_does_not_crash(tmp_path):
    path = archive(tmp_path, {"a/data.pkl": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b"."})
    assert isinstance(read_torch_file(path), list)


def tensor_pickle(offset=0, shape=(2, 3), strides=(3, 1), count=6, kind="FloatStorage", key="0", wrap=b"%s"):
    """Write the pickle of one tensor by hand, so that each of its numbers can be wrong."""

    def number(value):
        return b"L%dL\n" % value

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    identity = b"(S'storage'\nctorch\n%s\nS'%s'\nS'cpu'\n%stQ" % (kind.encode(), key.encode(), number(count))
    rest = number(offset) + numbers(shape) + numbers(strides) + b"I00\nccollections\nOrderedDict\n(tR"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + wrap % identity + rest + b"tR."


def both(folder, pickled):
    content = np.arange(6, dtype="<f4").tobytes()
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + content
    return legacy(folder, pickled, tail), archive(folder, {"a/data.pkl": pickled, "a/data/0": content})


def test_the_handwritten_pickle_is_valid_by_default(tmp_path):
    for path in both(tmp_path, tensor_pickle()):
        same(read_torch_file(path), np.arange(6, dtype=np.float32).reshape(2, 3))


OUT_OF_BOUNDS = {
    "offset": {"offset": 1},
    "negative offset": {"offset": -1},
    "shape": {"shape": (3, 3)},
    "negative shape": {"shape": (-2, -3)},
    "stride": {"strides": (4, 1)},
    "negative stride": {"strides": (-3, 1)},
    "huge shape": {"shape": (2**62, 2**62)},
    "huge stride": {"strides": (2**61, 2**61)},
    "overflowing stride": {"shape": (5, 3), "strides": (2**62, 1)},
    "count": {"count": 7},
    "huge count": {"count": 2**61},
    "negative count": {"count": -6},
    "wider type": {"kind": "DoubleStorage"},
    "other storage": {"key": "1"},
    "parent folder": {"key": "../data.pkl"},
    "more strides than sides": {"strides": (3, 1, 1)},
    "40 dimensions": {"shape": (1,) * 40, "strides": (1,) * 40},
    # An array instead of a storage has unknown bounds: a view of a broadcast view could reach anywhere.
    "view of a view": {
        "wrap": b"ctorch._utils\n_rebuild_tensor\n(%sI0\n(L1000000L\nt(I0\nttR",
        "offset": 5000,
    },
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_no_byte_outside_a_storage_is_ever_read(tmp_path, name):
    for path in both(tmp_path, tensor_pickle(**OUT_OF_BOUNDS[name])):
        with pytest.raises(CheckpointError, match="damaged"):
            read_torch_file(path)


def test_sides_of_one_may_have_any_stride(tmp_path):
    for path in both(tmp_path, tensor_pickle(shape=(1, 6), strides=(2**61, 1))):
        same(read_torch_file(path), np.arange(6, dtype=np.float32)[None])


def test_storages_that_overlap_in_the_archive_are_refused(tmp_path):
    """The directory of a small archive names the same bytes 99 times, each to be expanded."""
    content = np.zeros(20_000, "<u2").tobytes()
    tensors = [
        tensor_pickle(shape=(1,), strides=(1,), count=20_000, kind="BFloat16Storage", key=str(i))[2:-1]
        for i in range(99)
    ]
    pickled = b"\x80\x02(" + b"".join(tensors) + b"l."
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", content)
        first = file.getinfo("a/data/0")
        for i in range(1, 99):
            again = zipfile.ZipInfo(f"a/data/{i}")
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            file.filelist.append(again)
            file.NameToInfo[again.filename] = again
        file._didModify = True
    with pytest.raises(CheckpointError, match="overlap"):
        read_torch_file(path)


def test_compressed_entries_are_refused_without_decompressing(tmp_path):
    bomb = archive(tmp_path, {"a/data.pkl": b"N" * 50_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_file(bomb)


def test_a_flipped_bit_in_a_storage_is_noticed(tmp_path):
    content = bytearray((FILES / "plain_zip.pth").read_bytes())
    weights = EXPECTED["vit_arrays"](0)["blocks.0.attn.qkv.weight"].tobytes()
    content[content.index(weights) + 100] ^= 1
    path = tmp_path / "flipped.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        read_torch_file(path)


def test_other_files_are_refused(tmp_path):
    cases = {
        "empty": b"",
        "text": b"hello, world" * 10,
        "zip of something else": None,
        "pickle of something else": pickle.dumps({"a": 1}, 2),
        "other protocol": pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1002, 2),
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is None:
            path = archive(tmp_path, {"hello.txt": b"hello"})
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_torch_file(path)
        assert str(path) in str(caught.value)
    for missing in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(CheckpointError, match="can't be read"):
            read_torch_file(missing)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_pipes_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_torch_file, read_safetensors):
        with pytest.raises(CheckpointError, match="pipe or device"):
            read(tmp_path / "pipe")


def test_files_cut_off_anywhere(tmp_path, container):
    content = (FILES / f"odd_{container}.pth").read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_torch_file(path)


def read_every_element(value):
    """Read every element of each array, since a view beyond its storage would crash."""
    if isinstance(value, np.ndarray):
        if value.size < 1_000_000:
            value.astype(np.complex128).sum()
    elif isinstance(value, dict):
        for inner in value.values():
            read_every_element(inner)


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=400)
@given(data=st.data(), name=st.sampled_from(["plain_legacy", "odd_legacy", "odd_zip", "training_zip"]))
def test_fuzzed_files_give_a_clean_error_or_readable_arrays(tmp_path_factory, data, name):
    content = bytearray((FILES / f"{name}.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzz.pth"
    path.write_bytes(content)
    try:
        read = read_torch_file(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        with np.errstate(all="ignore"):
            read_every_element(read)


@pytest.mark.slow(reason="many inputs")
@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_fuzzed_pickles_behind_a_valid_checksum(tmp_path_factory, data):
    """The checksums of the archive match the damaged pickle."""
    source = zipfile.ZipFile(FILES / "odd_zip.pth")
    entries = {name: source.read(name) for name in source.namelist()}
    (main,) = (name for name in entries if name.endswith("data.pkl"))
    content = bytearray(entries[main])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    entries[main] = bytes(content)
    try:
        read = read_torch_file(archive(tmp_path_factory.getbasetemp(), entries))
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        with np.errstate(all="ignore"):
            read_every_element(read)


def test_hostile_files_take_little_memory(tmp_path):
    """Peak memory grows by less than 300 MB over files that claim to hold much more than they do."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claims = [REFUSED[name] for name in ("a string longer than the file", "bytes of 2^63", "a memo of 2^31")]
    claims += [tensor_pickle(**OUT_OF_BOUNDS[name]) for name in ("huge shape", "huge count")]
    # One long list in the memo, passed to many calls that would each copy it.
    numbers = (
        b"\x80\x02]("
        + b"K\x01" * 100_000
        + b"eq\x000"
        + b"ctorch\nSize\nq\x01h\x00\x85q\x020("
        + b"h\x01h\x02R" * 50_000
        + b"l."
    )
    pairs = b"\x80\x02](" + b"K\x01K\x01\x86" * 50_000 + b"eq\x000"
    pairs += b"ccollections\nOrderedDict\nq\x01h\x00\x85q\x020(" + b"h\x01h\x02R" * 50_000 + b"l."
    for pickled in (*claims, numbers, pairs):
        for path in both(tmp_path, pickled):
            with contextlib.suppress(CheckpointError):
                read_torch_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
