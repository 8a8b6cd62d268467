"""What stands in for wandb's server, as far as its client asks it when a run is sent."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "a" * 40


class Server(ThreadingHTTPServer):
    """Keeps, by the identity of a run, its rows of numbers, each at the place that the client gives
    it, its config, and the exit code that it ended with."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows, self.configs, self.codes = {}, {}, {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A client that went away is no matter."""

    def stream(self, run, content):
        history = content.get("files", {}).get("wandb-history.jsonl")
        if history:
            rows, first = self.rows.setdefault(run, []), history["offset"]
            rows[first : first + len(history["content"])] = map(json.loads, history["content"])
        if content.get("complete"):
            self.codes[run] = content["exitcode"]
        return {"exitcode": None, "limits": {}}

    def _resumed(self, run):
        """What a run goes on from."""
        if run not in self.configs:
            return None
        rows, config = self.rows.get(run, []), json.dumps(self.configs[run])
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]])}
        texts = {"summaryMetrics": "{}", "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
        return {"id": run, "name": run, "config": config, "tags": [], **counts, **tails, **texts}

    def answer(self, query, given):
        """What a GraphQL query gives."""
        if "UpsertBucket" in query:
            self.configs[given["name"]] = json.loads(given["config"])
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": given["name"], "name": given["name"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "RunResumeStatus" in query:
            name = given["name"]
            return {"model": {"id": "p", "name": "reste", "bucket": self._resumed(name)}}
        if "query Run" in query:
            last = len(self.rows[given["name"]]) - 1
            texts = dict.fromkeys(("config", "systemMetrics", "summaryMetrics"), "{}")
            run = {"id": "r", "name": given["name"], "projectId": "1", "state": "finished"}
            user = {"name": "me", "username": "me"}
            return {"project": {"run": {**run, **texts, "tags": [], "user": user,
                                        "historyKeys": {"lastStep": last}}}}  # fmt: skip
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_PUT(self):
        self._read()
        self._give({})

    def do_POST(self):
        content = self._read()
        if self.path.endswith("/file_stream"):
            self._give(self.server.stream(self.path.split("/")[-2], json.loads(content)))
        else:
            asked = json.loads(content)
            self._give({"data": self.server.answer(asked["query"], asked.get("variables"))})

    def _read(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_packed = self.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(content) if is_packed else content

    def _give(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
