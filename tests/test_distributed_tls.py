"""Schedulers behind TLS, with certificates signed by themselves, and the reasons that are shown if it fails."""

from __future__ import annotations

import gc
import os
import shutil
import ssl
import subprocess
import sys

import pytest

from vitnp.errors import ClusterError

distributed = pytest.importorskip("distributed", reason="distributed isn't installed: pip install 'vitnp[dask]'")
from vitnp.distributed import connect, connected

pytestmark = [
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
    # What distributed leaves open when a connection fails is its own affair.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def make_certificate(folder, name):
    """Make a certificate for 127.0.0.1 that signs itself; return the paths of certificate and key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-out", certificate, "-keyout", key,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(certificate), str(key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    return {name: make_certificate(folder, name) for name in ("ours", "theirs")}


def security(ca, own) -> distributed.Security:
    certificate, key = own
    return distributed.Security(
        require_encryption=True, tls_ca_file=ca,
        tls_client_cert=certificate, tls_client_key=key, tls_scheduler_cert=certificate, tls_scheduler_key=key,
        tls_worker_cert=certificate, tls_worker_key=key,
    )  # fmt: skip


@pytest.fixture(scope="module")
def address(certificates):
    """A scheduler with one worker that talk to nobody without a certificate signed by ours."""
    ours = security(certificates["ours"][0], certificates["ours"])
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, protocol="tls", security=ours, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=100,
    ) as cluster:  # fmt: skip
        assert cluster.scheduler_address.startswith("tls://")
        yield cluster.scheduler_address
    gc.collect()


@pytest.mark.slow(reason="starts workers")
def test_certificates_as_an_argument(address, certificates):
    ours = security(certificates["ours"][0], certificates["ours"])
    with connected(address, cache="cache", security=ours) as cluster:
        assert list(cluster.map(abs, range(-20, 0))) == list(range(20, 0, -1))
        assert isinstance(cluster.client.security.get_connection_args("client")["ssl_context"], ssl.SSLContext)


@pytest.mark.slow(reason="starts workers")
def test_certificates_in_the_environment(address, certificates):
    certificate, key = certificates["ours"]
    variables = {
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": certificate,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": certificate,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": key,
    }
    code = (
        "import sys\nfrom vitnp.distributed import connected\n"
        "with connected(sys.argv[1], cache='cache') as cluster: print(list(cluster.map(abs, [-1, -2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address], env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "[1, 2]\n", done.stderr


@pytest.mark.slow(reason="starts workers")
def test_the_reason_is_shown(address, certificates, monkeypatch):
    monkeypatch.setattr(connect, "_CONNECT_SECONDS", 4)
    ours, theirs = certificates["ours"], certificates["theirs"]
    no_answer = rf"^no dask scheduler answers at {address} \("
    cases = [
        (None, "no certificates are given for TLS"),
        (security(theirs[0], theirs), "certificate verify failed: self-signed certificate"),
        (security(ours[0], theirs), "_ssl.c"),  # what the scheduler answers, or that it hangs up
    ]
    for certificates, reason in cases:
        with (
            pytest.raises(ClusterError, match=no_answer) as caught,
            connected(address, cache="cache", security=certificates),
        ):
            pass
        assert reason in str(caught.value) and "DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in str(caught.value)
        assert "\n" not in str(caught.value)
    plain = address.replace("tls://", "tcp://")
    with pytest.raises(ClusterError, match=rf"answers at {plain} \(.+\); start one"), connected(plain, cache="cache"):
        pass


@pytest.mark.slow(reason="starts workers")
def test_local_workers_are_behind_tls_where_certificates_can_be_made():
    pytest.importorskip("cryptography")
    with connected("local", workers=1) as cluster:
        assert cluster.client.scheduler.address.startswith("tls://")
        assert list(cluster.map(abs, [-1, -2])) == [1, 2]
