import hashlib
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from odenets.data.download import content_hash, download_files, read_hash_table
from odenets.data.errors import DataError, NoNetwork
from odenets.progress import no_progress

CONTENT = {"a.dat": bytes(range(256)) * 20, "b.hea": b"header\r\n"}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, writes down what was asked for, and hangs up half-way through names with `short`."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if "short" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hashes():
    texts = {name: data.replace(b"\r\n", b"\n") if name == "b.hea" else data for name, data in CONTENT.items()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}


def download(server, hashes, dest):
    download_files(server.url, hashes, dest, "Get it elsewhere.", no_progress)


def test_files_arrive_with_their_names_and_nothing_else(server, hashes, tmp_path):
    download(server, hashes, tmp_path / "new" / "folder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == CONTENT


def test_verified_files_are_not_fetched_again_and_damaged_ones_are(server, hashes, tmp_path):
    download(server, hashes, tmp_path)
    (tmp_path / "a.dat").write_bytes(b"damaged")
    server.asked.clear()
    download(server, hashes, tmp_path)
    assert server.asked == ["/a.dat"]
    assert (tmp_path / "a.dat").read_bytes() == CONTENT["a.dat"]


def test_a_wrong_hash_is_an_error_and_leaves_nothing(server, hashes, tmp_path):
    dest = tmp_path / "dest"
    with pytest.raises(DataError, match=r"a\.dat has SHA-256 [0-9a-f]{64}, but 000 is expected.*not kept") as error:
        download(server, hashes | {"a.dat": "000"}, dest)
    assert not isinstance(error.value, NoNetwork)
    assert list(dest.iterdir()) == []


def test_a_file_that_the_server_does_not_have_is_an_error(server, tmp_path):
    with pytest.raises(DataError, match=r"/c\.dat answered 404 File not found\. Get it elsewhere\.") as error:
        download(server, {"c.dat": "0"}, tmp_path / "dest")
    assert not isinstance(error.value, NoNetwork)
    assert list((tmp_path / "dest").iterdir()) == []


def test_a_connection_that_breaks_off_is_no_network_and_leaves_nothing(server, tmp_path):
    with pytest.raises(NoNetwork, match=r"Could not download http.*/short\.dat.*closed after 4 of 1000 bytes"):
        download(server, {"short.dat": "0"}, tmp_path / "dest")
    assert list((tmp_path / "dest").iterdir()) == []


def test_no_server_is_no_network_with_url_and_hint(monkeypatch, hashes, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(NoNetwork, match=rf"Could not download {url}a\.dat: .*refused.*\. Get it elsewhere\."):
            download_files(url, hashes, tmp_path, "Get it elsewhere.", no_progress)


def test_a_hash_table_is_what_sha256sum_prints():
    assert read_hash_table("12ab  100.dat\n34cd  100.hea\n") == {"100.dat": "12ab", "100.hea": "34cd"}


def test_line_ends_of_headers_do_not_count(tmp_path):
    for name in ("x.hea", "x.dat"):
        (tmp_path / name).write_bytes(b"one\r\ntwo\r\n")
    unix = hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert content_hash(tmp_path / "x.hea") == unix
    assert content_hash(tmp_path / "x.dat") != unix
    assert content_hash(tmp_path / "x.dat", "x.hea") == unix
