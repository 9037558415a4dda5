"""The registry, downloads from servers that fail in many ways, and the weights command."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import pathlib
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from vitnp.checkpoints import registry
from vitnp.checkpoints.download import cache_folder, fetch
from vitnp.checkpoints.load import load_vit
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.cli.weights import main
from vitnp.errors import CheckpointError, VitnpError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
UNRECORDED, RECORDED = "dino_vits16", "dino_vits8"  # without and with a SHA-256 in the registry


def network(scale=1.0):
    """Return a ViT of width 12 as the bytes of a safetensors file."""
    shapes = {"cls_token": (1, 1, 12), "pos_embed": (1, 5, 12), "patch_embed.proj.weight": (12, 3, 2, 2)}
    shapes |= {"patch_embed.proj.bias": (12,), "norm.weight": (12,), "norm.bias": (12,)}
    block = {"norm1.weight": (12,), "norm1.bias": (12,), "attn.qkv.weight": (36, 12), "attn.qkv.bias": (36,)}
    block |= {"attn.proj.weight": (12, 12), "attn.proj.bias": (12,), "norm2.weight": (12,), "norm2.bias": (12,)}
    block |= {"mlp.fc1.weight": (24, 12), "mlp.fc1.bias": (24,), "mlp.fc2.weight": (12, 24), "mlp.fc2.bias": (12,)}
    shapes |= {f"blocks.0.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(0)
    return safetensors.numpy.save({n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()})


class Server:
    """A server that answers each request with the next of its answers, and repeats the last one."""

    def __init__(self):
        self.answers, self.requests = [], []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(self.path)
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def serve(content, length=None, **headers):
    def answer(handler):
        handler.send_response(200)
        if length != "none":
            handler.send_header("Content-Length", str(length or len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def fail(status):
    return lambda handler: handler.send_error(status)


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def redirect(to, **headers):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "VITNP_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("VITNP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirror(server, monkeypatch):
    """A mirror that is trusted like one over https."""
    monkeypatch.setenv("VITNP_MIRROR", server.address)
    monkeypatch.setattr(
        "vitnp.checkpoints.download._is_encrypted", lambda url: url.startswith((server.address, "https://"))
    )
    return server


@pytest.fixture(autouse=True)
def small_registry(monkeypatch):
    """The registry, with the size and the architecture of `network()` for three names."""
    known = dict(registry.entries())
    small = {"width": 12, "depth": 1, "patch": 2, "registers": 0, "megabytes": len(network()) / 1e6}
    for name in (UNRECORDED, RECORDED, "dinov2_vits14_reg"):
        known[name] = dataclasses.replace(known[name], **small)
    monkeypatch.setattr(registry, "entries", lambda: known)
    return known


@pytest.fixture
def recorded(small_registry):
    """The SHA-256 of `network()` for one name."""
    digest = hashlib.sha256(network()).hexdigest()
    small_registry[RECORDED] = dataclasses.replace(small_registry[RECORDED], sha256=digest)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def timm_dinov3():
    """Return a DINOv3 of width 12 as timm's safetensors file."""
    tensors = safetensors.numpy.load(network())
    for name in ("pos_embed", "blocks.0.attn.qkv.bias"):
        del tensors[name]
    gammas = {f"blocks.0.gamma_{index}": np.full(12, 0.5, np.float32) for index in (1, 2)}
    return safetensors.numpy.save(tensors | gammas | {"reg_token": np.ones((1, 4, 12), np.float32)})


# ---- registry ----------------------------------------------------------------------------------------------------


def test_registry_entries_are_complete_and_consistent():
    for name, entry in registry.entries().items():
        assert name == entry.name
        own_license = name.startswith("dinov3")  # is accepted by the user, or nothing is fetched
        assert entry.license == ("DINOv3" if own_license else "Apache-2.0")
        assert bool(entry.license_url) == bool(entry.gate) == bool(entry.original_sha256_start) == own_license
        assert entry.normalization in registry.NORMALIZATIONS and entry.pos_embed in ("offset", "exact", "antialias")
        assert entry.url is None or entry.url.startswith("https://")
        if own_license:
            assert entry.original.endswith(f"-{entry.original_sha256_start}.pth")
            assert entry.normalization == ("sat493m" if name.endswith("_sat") else "imagenet")
        for sha256 in (entry.sha256, entry.original_sha256):
            assert sha256 is None or len(bytes.fromhex(sha256)) == 32
        assert entry.pos_embed == "antialias" or not name.endswith("_reg")
        if name.startswith("dinov2") and not name.endswith("_reg"):
            assert f"{name}_reg" in registry.entries() and f"{name}_reg" in entry.note
    built_in = registry.find("auto")
    assert hashlib.sha256((registry.FOLDER / built_in.file_name).read_bytes()).hexdigest() == built_in.sha256


def test_unknown_names_are_answered_with_a_similar_one():
    with pytest.raises(CheckpointError, match="did you mean dinov2_vits14"):
        registry.find("dinov2_vits41")
    with pytest.raises(CheckpointError, match="weights list"):
        registry.find("zzz")


# ---- download ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_downloaded_once(mirror, recorded, cache):
    mirror.answers = [serve(network())]
    for name in (RECORDED, UNRECORDED):
        mirror.requests.clear()
        path, sha256 = fetch(name)
        assert path == cache / f"{name}.safetensors" and path.read_bytes() == network()
        assert sha256 == hashlib.sha256(network()).hexdigest()
        assert fetch(name) == (path, sha256)
        assert load_vit(name).sha256 == sha256
        assert len(mirror.requests) == 1
        assert mirror.requests == ["/" + registry.find(name).url.split("/", 3)[3]]
    # A SHA-256 that the registry lacks is written beside the file, in the format of sha256sum --check.
    sidecar = f"{UNRECORDED}.safetensors.sha256"
    assert set(names(cache)) == {f"{UNRECORDED}.safetensors", sidecar, f"{RECORDED}.safetensors"}
    assert (cache / sidecar).read_text() == f"{sha256}  {UNRECORDED}.safetensors\n"


def test_a_registered_name_follows_the_official_code(mirror, recorded):
    mirror.answers = [serve(network())]
    config = load_vit(RECORDED).config
    assert (config.heads, config.eps, config.pos_embed, config.mean[0]) == (6, 1e-6, "offset", 0.485)
    assert load_vit("dinov2_vits14_reg").config.pos_embed == "antialias"
    assert load_vit(RECORDED, pos_embed="exact").config.pos_embed == "exact"


@pytest.mark.parametrize("name", [RECORDED, UNRECORDED])
def test_a_connection_that_breaks_midway_is_tried_once_more(mirror, recorded, cache, name):
    content = network()
    broken = serve(content[: len(content) // 2], length=len(content))
    for first in (broken, hang_up, fail(503)):
        mirror.answers, mirror.requests = [first, serve(content)], []
        path, _ = fetch(name)
        assert path.read_bytes() == content and len(mirror.requests) == 2
        for file in cache.iterdir():
            file.unlink()
    mirror.answers, mirror.requests = [broken], []
    with pytest.raises(CheckpointError, match="broke midway"):
        fetch(name)
    assert len(mirror.requests) == 2 and names(cache) == []


def test_a_wrong_checksum_is_never_kept(mirror, recorded, cache):
    mirror.answers = [serve(network(2.0))]
    with pytest.raises(CheckpointError, match="doesn't have the expected SHA-256"):
        fetch(RECORDED)
    assert names(cache) == [] and len(mirror.requests) == 2


def test_the_sha256_of_the_server_is_checked_if_the_registry_has_none(mirror, server, cache):
    right = f'"{hashlib.sha256(network()).hexdigest()}"'
    wrong = f'"{hashlib.sha256(b"").hexdigest()}"'
    mirror.answers = [redirect(f"{server.address}/file", X_Linked_ETag=right), serve(network())]
    assert fetch(UNRECORDED)[0].is_file()
    for file in cache.iterdir():
        file.unlink()
    once = [redirect(f"{server.address}/file", X_Linked_ETag=wrong), serve(network())]
    mirror.answers = once * 2
    with pytest.raises(CheckpointError, match="SHA-256"):
        fetch(UNRECORDED)
    assert names(cache) == []


def test_a_404_is_not_tried_again_and_the_message_says_what_to_do(mirror, cache):
    mirror.answers = [fail(404)]
    with pytest.raises(CheckpointError) as caught:
        fetch(UNRECORDED)
    message = str(caught.value)
    assert len(mirror.requests) == 1 and names(cache) == [] and "\n" not in message
    assert "404" in message and mirror.address + mirror.requests[0] in message
    assert str(cache / f"{UNRECORDED}.safetensors") in message and "by hand" in message


def test_without_network(monkeypatch, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("VITNP_MIRROR", nowhere)
    with pytest.raises(CheckpointError, match="is there a network.*by hand to") as caught:
        load_vit(RECORDED)
    assert nowhere in str(caught.value) and str(cache / f"{RECORDED}.safetensors") in str(caught.value)
    monkeypatch.delenv("VITNP_MIRROR")
    monkeypatch.setenv("HTTPS_PROXY", nowhere)
    with pytest.raises(CheckpointError, match="proxy can't be reached.*huggingface.co"):
        load_vit(UNRECORDED)


def test_a_file_put_into_the_cache_is_used_and_a_damaged_one_downloaded_again(mirror, recorded, cache):
    mirror.answers = [serve(network())]
    for name in (RECORDED, UNRECORDED):
        mirror.requests.clear()
        path = cache / f"{name}.safetensors"
        cache.mkdir(exist_ok=True)
        path.write_bytes(network())
        assert load_vit(name).config.width == 12 and mirror.requests == []
        content = bytearray(network())
        content[-1] ^= 1
        path.write_bytes(content)
        assert fetch(name)[0].read_bytes() == network()
        assert len(mirror.requests) == 1


def test_an_interrupted_download_leaves_nothing(mirror, cache, monkeypatch):
    def interrupted(self, _, output_file, __):
        pathlib.Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("vitnp.checkpoints.download._Downloader.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(UNRECORDED)
    assert names(cache) == []


def network_of(**changes):
    """Return `network()` with some tensors replaced, or left out for None."""
    tensors = safetensors.numpy.load(network()) | changes
    return safetensors.numpy.save({name: array for name, array in tensors.items() if array is not None})


UNLIKE = {  # what a server sends for a name without a SHA-256, and what the message says
    "cut off": (network()[:-400], "MB, but the checkpoint has"),
    "another container": ((b"PK\x03\x04" * len(network()))[: len(network())], "isn't a safetensors file"),
    "a web page": ((b"<html>" * len(network()))[: len(network())], "it is a web page"),
    "damaged": (network().replace(b'"F32"', b'"F33"', 1), "not a complete safetensors file"),
    "not finite": (network(np.inf), "NaN or infinity"),
    "a tensor less": (network_of(**{"norm.bias": None}), "'norm.bias' is missing"),
    "more registers": (
        network_of(register_tokens=np.zeros((1, 1, 12), np.float32)),
        "has registers 1, but .* has registers 0",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_without_a_sha256_only_the_right_architecture_is_kept(mirror, cache, case):
    content, message = UNLIKE[case]
    mirror.answers = [serve(content)]
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch(UNRECORDED)
    assert names(cache) == [] and len(mirror.requests) == 1
    assert "\n" not in str(caught.value) and "by hand" in str(caught.value) and ".part" not in str(caught.value)


def test_positions_without_one_for_cls_are_kept(mirror, small_registry):
    # timm's DINOv2 with registers, which the registry has without a SHA-256.
    tensors = safetensors.numpy.load(network())
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    content = safetensors.numpy.save(tensors | {"reg_token": np.zeros((1, 4, 12), np.float32)})
    small_registry["dinov2_vits14_reg"] = dataclasses.replace(
        small_registry["dinov2_vits14_reg"], registers=4, megabytes=len(content) / 1e6
    )
    mirror.answers = [serve(content)]
    path, _ = fetch("dinov2_vits14_reg")
    assert path.is_file()


@pytest.mark.parametrize("name", [RECORDED, UNRECORDED])
def test_nothing_longer_than_the_checkpoint_is_received(mirror, recorded, cache, name):
    content = network() + bytes(2**20)
    for answer in (serve(content), serve(content, length="none")):
        mirror.answers, mirror.requests = [answer], []
        with pytest.raises(CheckpointError, match="sends more than"):
            fetch(name)
        assert names(cache) == [] and len(mirror.requests) == 1


def test_an_open_connection_needs_a_sha256(server, recorded, cache, monkeypatch):
    monkeypatch.setenv("VITNP_MIRROR", server.address)
    server.answers = [serve(network())]
    assert fetch(RECORDED)[0].is_file()
    server.requests.clear()
    with pytest.raises(CheckpointError, match=f"open connection.*VITNP_MIRROR={server.address}.*https://") as caught:
        fetch(UNRECORDED)
    assert server.requests == [] and "by hand" in str(caught.value) and "\n" not in str(caught.value)
    # Nor may an encrypted server send the file's address on an open one.
    mirrored = f"{server.address}/{registry.find(UNRECORDED).url.split('/', 3)[3]}"
    monkeypatch.setattr("vitnp.checkpoints.download._is_encrypted", lambda url: url == mirrored)
    server.answers = [redirect(f"{server.address}/elsewhere"), serve(network())]
    with pytest.raises(CheckpointError, match="open connection"):
        fetch(UNRECORDED)
    assert names(cache) == [f"{RECORDED}.safetensors"]


def test_a_file_of_another_architecture_in_the_cache_is_refused(mirror, cache, small_registry):
    cache.mkdir()
    (cache / f"{UNRECORDED}.safetensors").write_bytes(network())
    small_registry[UNRECORDED] = dataclasses.replace(small_registry[UNRECORDED], depth=2)
    with pytest.raises(CheckpointError, match="has depth 1, but dino_vits16 has depth 2"):
        load_vit(UNRECORDED)


def test_a_server_that_sends_no_length(mirror, recorded):
    mirror.answers = [serve(network(), length="none")]
    assert fetch(RECORDED)[0].read_bytes() == network()


@pytest.mark.parametrize("option", ["--accept-license", "--accept-licence"])
def test_dinov3_is_fetched_only_with_its_license_accepted(mirror, cache, small_registry, capsys, option):
    content = timm_dinov3()
    small = {"width": 12, "depth": 1, "patch": 2, "registers": 4, "heads": 3, "megabytes": len(content) / 1e6}
    small_registry["dinov3_vitl16_sat"] = dataclasses.replace(small_registry["dinov3_vitl16_sat"], **small)
    mirror.answers = [serve(content)]
    said = r"DINOv3 License, https://ai\.meta\.com/.*--accept-license.*https://huggingface\.co/facebook/.*--model FILE"
    for ask in (fetch, load_vit, lambda name: main(["fetch", name]), lambda name: main(["info", name])):
        with pytest.raises(CheckpointError, match=said) as caught:
            ask("dinov3_vitl16_sat")
        assert "\n" not in str(caught.value)
    assert mirror.requests == [] and names(cache) == [] and "fetching" not in capsys.readouterr().err
    assert main(["fetch", "dinov3_vitl16_sat", option]) == 0
    assert names(cache) == ["dinov3_vitl16_sat.safetensors", "dinov3_vitl16_sat.safetensors.sha256"]
    config = load_vit("dinov3_vitl16_sat").config  # what is in the cache is used
    assert (config.rotary, config.eps, config.heads) == (True, 1e-5, 3)
    assert (config.mean, config.std) == registry.NORMALIZATIONS["sat493m"]
    assert len(mirror.requests) == 1


def test_a_gate_that_stays_closed_is_named(mirror, cache):
    mirror.answers = [fail(401)]
    with pytest.raises(CheckpointError, match=r"answers 401.*: get the file from https://.*dinov3-vits16-.*--model"):
        fetch("dinov3_vits16", accept_license=True)
    assert names(cache) == []


def test_a_mirror_that_is_not_an_address(monkeypatch):
    monkeypatch.setenv("VITNP_MIRROR", "mirror.example")
    with pytest.raises(CheckpointError, match="VITNP_MIRROR must be"):
        fetch(UNRECORDED)


def test_a_cache_folder_that_cannot_be_created(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITNP_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="can't be written"):
        fetch(UNRECORDED)
    assert mirror.requests == []


def test_the_built_in_needs_neither_cache_nor_network(mirror, cache):
    load_vit("auto")
    assert mirror.requests == [] and not cache.exists()


def test_the_cache_folder_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("VITNP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert cache_folder() == tmp_path / "vitnp"
    monkeypatch.setenv("VITNP_CACHE", "~/weights")
    assert cache_folder() == pathlib.Path.home() / "weights"


# ---- command line ------------------------------------------------------------------------------------------------


def test_list_shows_which_checkpoints_are_cached(mirror, recorded, cache, capsys):
    mirror.answers = [serve(network())]
    assert main(["fetch", RECORDED]) == 0
    assert capsys.readouterr().out.strip() == str(cache / f"{RECORDED}.safetensors")
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "built in" in lines["vitnp_tiny"] and "cached" in lines[RECORDED] and "cached" not in lines[UNRECORDED]
    assert str(cache) in lines["Cache:"] and "arXiv 2309.16588" in lines["dinov2_vits14"]
    assert len(mirror.requests) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convert_keeps_weights_and_configuration(tmp_path, capsys, dtype):
    source = pathlib.Path(__file__).parent.parent / "golden" / "torch_files" / "training_legacy.pth"
    out = tmp_path / "out.safetensors"
    options = ["--heads", "2", "--pos-embed", "exact", "--normalization", "half"]
    assert main(["convert", str(source), str(out), "--dtype", dtype, *options]) == 0
    before = load_vit(source, heads=2, pos_embed="exact", normalization="half")
    after = load_vit(out)
    assert after.config == before.config
    assert set(after.weights) == set(before.weights)
    for name, array in before.weights.items():
        np.testing.assert_array_equal(after.weights[name], array.astype(dtype).astype(np.float32))
    tensors, metadata = read_safetensors(out)
    assert {array.dtype for array in tensors.values()} == {np.dtype(dtype)}
    assert metadata["source_sha256"] == before.sha256 and metadata["heads"] == "2"
    content = out.read_bytes()
    with pytest.raises(VitnpError, match="exists already"):
        main(["convert", str(source), str(out), *options])
    assert main(["convert", str(source), str(out), "--dtype", dtype, *options, "--overwrite"]) == 0
    assert out.read_bytes() == content and names(tmp_path) == ["out.safetensors"]


def test_convert_refuses_numbers_beyond_float16(tmp_path):
    big = tmp_path / "big.safetensors"
    big.write_bytes(network(1e5))
    with pytest.raises(CheckpointError, match="beyond float16"):
        main(["convert", str(big), str(tmp_path / "out.safetensors"), "--dtype", "float16", "--heads", "6"])
    with pytest.raises(VitnpError, match="must end in"):
        main(["convert", str(big), str(tmp_path / "out.npz"), "--heads", "6"])
    assert names(tmp_path) == ["big.safetensors"]


def test_info(capsys):
    assert main(["info", "auto"]) == 0
    out = capsys.readouterr().out
    for fact in ("14 x 14", "8870f900", "offset", "heads          ", "5.52 million"):
        assert fact in out


def test_exit_statuses_of_the_process(tmp_path):
    environment = {**os.environ, "VITNP_CACHE": str(tmp_path)}

    def run(*arguments):
        command = [sys.executable, "-m", "vitnp.weights", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    version = run("--version")
    assert version.returncode == 0 and version.stdout.startswith("vitnp ")
    for wrong in ((), ("fetch", "dino_vits61"), ("info", "none.pth")):
        done = run(*wrong)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("vitnp: error: ") and done.stderr.count("\n") == 1
