"""Random exchanges between clients of another make and an origin that records what it got.

It prints the port of its origin, reads the addresses of the proxy and the mirror, and makes COUNT exchanges from SEED on: by
http.client, by curl, and by the program of client.go if that is given; in absolute-form, through CONNECT and at the mirror. An
exchange fails if its client was told success with other bytes than the origin sent, if the origin got other bytes than the
client sent and nobody saw an error, or if its client saw an error that the origin did not cause.
"""
import http.client
import random
import socket
import subprocess
import sys
import threading
import time

KINDS = ["sized", "sized", "chunked", "trailers", "1.0 close", "1.0 keep-alive", "1.0 keep-alive until close", "until close",
         "cut sized", "cut chunked", "early 413", "informational", "late", "late chunked"]
CUT = ("cut sized", "cut chunked")
recorded = {}


class Response(http.client.HTTPResponse):
    """http.client takes a 103 for the answer."""

    def _read_status(self):
        status = super()._read_status()
        while 100 < status[1] < 200:
            while self.fp.readline() not in (b"\r\n", b""):
                pass
            status = super()._read_status()
        return status


http.client.HTTPConnection.response_class = Response


def read_body(file, headers):
    if headers.get(b"transfer-encoding", b"").lower() != b"chunked":
        length = int(headers.get(b"content-length", b"0"))
        body = file.read(length)
        return body, len(body) == length
    body = b""
    while size := int(file.readline().split(b";")[0] or b"x", 16):
        chunk = file.read(size)
        body += chunk
        if len(chunk) < size or file.readline() != b"\r\n":
            return body, False
    while (trailer := file.readline()) not in (b"\r\n", b""):
        pass
    return body, trailer == b"\r\n"


def answer(kind, body, draw):
    """The bytes of an answer, and whether the connection goes on."""
    sized = b"Content-Length: %d\r\n\r\n" % len(body)
    if kind in ("sized", "late", "informational"):
        before = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" if kind == "informational" else b""
        return before + b"HTTP/1.1 200 OK\r\n" + sized + body, True
    if kind in ("chunked", "late chunked", "trailers", "cut chunked"):
        text, at = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0
        while at < len(body):
            size = min(draw.randint(1, 50_000), len(body) - at)
            text += b"%x\r\n" % size + body[at:at + size] + b"\r\n"
            at += size
        if kind == "cut chunked":
            return text, False
        return text + b"0\r\n" + (b"X-Sum: 1\r\n" if kind == "trailers" else b"") + b"\r\n", True
    if kind == "1.0 keep-alive":
        return b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + sized + body, True
    if kind == "1.0 keep-alive until close":
        return b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n" + body, False
    if kind == "cut sized":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 5) + body, False
    return (b"HTTP/1.0" if kind == "1.0 close" else b"HTTP/1.1") + b" 200 OK\r\n\r\n" + body, False


def serve(connection):
    file = connection.makefile("rb")
    goes_on = True
    while goes_on and (line := file.readline()):
        path, headers = line.split()[1], {}
        while (header := file.readline()) not in (b"\r\n", b""):
            name, value = header.split(b":", 1)
            headers[name.strip().lower()] = value.strip()
        draw = random.Random(int(path.rsplit(b"/", 1)[1]))
        kind, body = draw.choice(KINDS), draw.randbytes(draw.choice([0, 1, 1000, 70_000, 300_000]))
        if kind == "early 413":
            recorded[path.decode()] = (kind, None, body)
            connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(3)
            while connection.recv(65536):
                pass
            return
        if b"expect" in headers:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        got, is_whole = read_body(file, headers)
        recorded[path.decode()] = (kind, got, body)
        if not is_whole:
            return
        text, goes_on = answer(kind, body, draw)
        if kind.startswith("late"):
            at = draw.randrange(len(text))
            time.sleep(draw.choice([0.005, 0.02]))
            connection.sendall(text[:at])
            time.sleep(0.005)
            text = text[at:]
        connection.sendall(text)


def serve_to_its_end(connection):
    try:
        serve(connection)
    except (OSError, ValueError):
        pass
    finally:
        connection.close()


def accept(listener):
    while True:
        threading.Thread(target=serve_to_its_end, args=(listener.accept()[0],), daemon=True).start()


def by_curl(way, method, url, upload, expect):
    """Status and body; None for an error."""
    command = ["curl", "--silent", "--max-time", "20", "--write-out", "\n%{http_code}", "--request", method]
    command += {"proxy": ["--proxy", f"http://{proxy}"], "connect": ["--proxytunnel", "--proxy", f"http://{proxy}"]}.get(way, [])
    command += ["--data-binary", "@-", "--header", f"Expect: {expect}"] if method != "GET" else []
    done = subprocess.run(command + [url], input=upload, capture_output=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return (int(status), body) if done.returncode == 0 else None


def by_http_client(connection, method, url, upload, draw):
    headers, body = {}, upload if method != "GET" else None
    is_old = draw.random() < 0.1
    connection._http_vsn, connection._http_vsn_str = (10, "HTTP/1.0") if is_old else (11, "HTTP/1.1")
    if is_old and draw.random() < 0.5:
        headers["Connection"] = "keep-alive"
    if body is not None and not is_old and draw.random() < 0.5:
        headers["Transfer-Encoding"] = "chunked"
        chunks = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in pieces(upload, 9000)]
        body = iter([*chunks, draw.choice([b"0\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n"])])
    try:
        connection.request(method, url, body=body, headers=headers)
        got = connection.getresponse()
        return (got.status, got.read()), not got.will_close
    except (OSError, http.client.HTTPException):
        return None, False


class Go:
    """The program of client.go."""

    def __init__(self):
        self.program = subprocess.Popen([go, proxy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def exchange(self, way, method, url, upload, draw):
        flags = [draw.choice(["sized", "chunked", "chunked,trailers"]), draw.choice(["plain", "expect"])]
        line = f"{way} {method} {url} {','.join(flags) if method != 'GET' else 'plain'} {len(upload)}\n"
        self.program.stdin.write(line.encode() + upload)
        self.program.stdin.flush()
        status, length = map(int, self.program.stdout.readline().split())
        body = self.program.stdout.read(length)
        return (status, body) if status else None


def pieces(text, size):
    return [text[at:at + size] for at in range(0, len(text), size)]


def judge(seed, way, method, upload, told):
    kind, got, body = recorded.get(f"/v2/x/{seed}", (None, None, None))
    if told is None or told[0] >= 500:
        # A connection that the origin has ended may cost a request that never came there.
        wrong = None if kind is None or kind in CUT else "an error without a cause"
    elif told[0] == 413:
        wrong = None if told[1] == b"big" else "another 413"
    elif kind in CUT:
        wrong = "a cut answer looks whole"
    else:
        wrong = "another answer" if told[1] != body else "another upload" if got != upload else None
    return [(seed, way, method, kind, told and told[0], len(upload), wrong)] if wrong else []


def work(worker, failures):
    connection, way, draw_way = None, None, random.Random(worker)
    program = Go() if go else None
    for seed in range(first + worker, first + count, WORKERS):
        draw = random.Random(seed * 7919 + 1)
        method = draw.choice(["GET", "GET", "PUT", "POST"])
        upload = draw.randbytes(draw.choice([0, 1, 100, 70_000, 500_000])) if method != "GET" else b""
        if connection is None or draw_way.random() < 0.1:
            way = draw_way.choice(["proxy", "connect", "mirror"])
            connection = http.client.HTTPConnection(*(mirror if way == "mirror" else proxy).split(":"), timeout=20)
            if way == "connect":
                connection.set_tunnel("127.0.0.1", port)
        whole = f"http://{mirror if way == 'mirror' else origin}/v2/x/{seed}"
        who = draw.random()
        if who < 0.1:
            told, goes_on = by_curl(way, method, whole, upload, draw.choice(["", "100-continue"])), True
        elif who < 0.4 and program:
            told, goes_on = program.exchange(way, method, whole, upload, draw), True
        else:
            url = whole if way == "proxy" else f"/v2/x/{seed}"
            told, goes_on = by_http_client(connection, method, url, upload, draw)
        failures += judge(seed, way, method, upload, told)
        if not goes_on:
            connection = None


WORKERS = 8
first, count = int(sys.argv[1]), int(sys.argv[2])
go = sys.argv[3] if len(sys.argv) > 3 else None
listener = socket.create_server(("127.0.0.1", 0), backlog=500)
port = listener.getsockname()[1]
origin = f"127.0.0.1:{port}"
threading.Thread(target=accept, args=(listener,), daemon=True).start()
print(port, flush=True)
proxy, mirror = input().split()
failures = []
workers = [threading.Thread(target=work, args=(worker, failures)) for worker in range(WORKERS)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(f"seed {first}: {len(recorded)} of {count} exchanges reached the origin, {len(failures)} failed", *failures[:10], sep="\n")
sys.exit(1 if failures or len(recorded) < count * 9 // 10 else 0)
