"""A local HTTP server that stands for a cluster's API: it answers what it is told and keeps what it heard."""

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    status: int = 200
    body: Any = field(default_factory=dict)
    lines: list[Any] | None = None
    """Sent one by one, each as a chunk: bytes as they are, anything else as a line of JSON."""
    cut: bool = False
    """Close the connection before the stream has ended."""
    silent_s: float = 0.0
    """How long the stream says nothing after its lines."""
    drop: bool = False
    """Close the connection without a word."""
    wait_s: float = 0.0


class Server:
    """Answers by method and path; a path without an answer is a 404 in the server's own words."""

    def __init__(self) -> None:
        self.history: list[Request] = []
        self.answers: dict[tuple[str, str], list[Answer]] = {}
        self.url = ""

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Give these answers in turn, the last one from then on."""
        self.answers[method, path] = list(answers)

    def requests(self, method: str, path: str) -> list[Request]:
        return [one for one in self.history if (one.method, one.path) == (method, path)]


@contextmanager
def serve(certificate: Path | None = None):
    """Run a server until the end of the block; with a certificate (and its key in the same file) by HTTPS."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            body = json.loads(text) if text else None
            server.history.append(Request(self.command, path, query, dict(self.headers), body))
            answers = server.answers.get((self.command, path), [])
            answer = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else None
            if answer is None:
                answer = Answer(404, {"code": 5, "message": "not found here", "details": []})
            if answer.wait_s:
                time.sleep(answer.wait_s)
                self.close_connection = True  # whoever asked has gone
                return
            if answer.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            if answer.lines is not None:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for line in answer.lines:
                    chunk = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                time.sleep(answer.silent_s)
                self.close_connection = True
                if not answer.cut:
                    self.wfile.write(b"0\r\n\r\n")
                return
            payload = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        server.url = server.url.replace("http://", "https://")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def write_kubeconfig(file: Path, url: str, token: str, monkeypatch: Any) -> None:
    """Let Kubernetes' client take a server for its cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": token}}],
    }
    file.write_text(json.dumps(config))
    use_kubeconfig(file, monkeypatch)


def use_kubeconfig(file: Path, monkeypatch: Any) -> None:
    """Let Kubernetes' client read a file, which it looks for when it is imported."""
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))


def certificate(file: Path, *names: str) -> Path:
    """Write the key and the certificate of a server on 127.0.0.1, and of these names, that is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "local")])
    now = dt.datetime.now(dt.UTC)
    holders = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *(x509.DNSName(name) for name in names)]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(holders), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file
