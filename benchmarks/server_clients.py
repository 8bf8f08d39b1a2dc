"""The happy path of the batch server with other SDKs: openai 1.x and 2.x for Python, and that for JavaScript.

Each is installed from its registry into a folder of its own (pip, npm), uploads a file, makes a batch of it,
waits for its end, and reads the results.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
from harness import Goal, Outcome
from server_load import lines, server

PYTHON = """
import sys, time, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
with open(sys.argv[2], "rb") as file:
    made = client.files.create(file=file, purpose="batch")
batch = client.batches.create(
    input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"by": "test"}
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.05)
    batch = client.batches.retrieve(batch.id)
lines = client.files.content(batch.output_file_id).text.splitlines()
listed = [each.id for each in client.batches.list(limit=1)]
assert batch.status == "completed" and batch.id in listed, batch
assert client.files.delete(made.id).deleted
print(openai.__version__, len(lines), batch.request_counts.completed)
"""

JAVASCRIPT = """
const fs = require("fs");
const OpenAI = require("openai");
(async () => {
  const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none" });
  const made = await client.files.create({ file: fs.createReadStream(process.argv[3]), purpose: "batch" });
  let batch = await client.batches.create({
    input_file_id: made.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  const text = await (await client.files.content(batch.output_file_id)).text();
  const listed = [];
  for await (const each of client.batches.list({ limit: 1 })) listed.push(each.id);
  const gone = await client.files.delete(made.id);
  if (batch.status !== "completed" || !gone.deleted) throw new Error(batch.status);
  if (!listed.includes(batch.id)) throw new Error("the batch is not listed");
  const version = JSON.parse(fs.readFileSync("node_modules/openai/package.json")).version;
  console.log(version, text.trim().split("\\n").length, batch.request_counts.completed);
})();
"""


def python_sdk(folder: Path, wanted: list[str]) -> list[str]:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=600)
    (folder / "path.py").write_text(PYTHON, encoding="utf-8")
    return [python, "path.py"]


def javascript_sdk(folder: Path) -> list[str]:
    folder.mkdir()
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"]
    subprocess.run(install, check=True, timeout=600, cwd=folder)
    (folder / "path.cjs").write_text(JAVASCRIPT, encoding="utf-8")
    return ["node", "path.cjs"]


def main() -> None:
    found = harness.parser(__doc__).parse_args()
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as name, server(0.0) as (url, _):
        folder = Path(name)
        (folder / "in.jsonl").write_bytes(lines(50, "row"))
        made = {
            "Python 1.x": ("one", lambda at: python_sdk(at, ["openai<2", "httpx<0.28"])),
            "Python 2.x": ("two", lambda at: python_sdk(at, ["openai>=2,<3"])),
            "JavaScript": ("js", javascript_sdk),
        }
        for sdk, (place, install) in made.items():
            command = install(folder / place)
            done = subprocess.run(
                [*command, url, str(folder / "in.jsonl")],
                capture_output=True,
                text=True,
                timeout=120,
                cwd=folder / place,
                check=False,
            )
            told = done.stdout.split() if done.returncode == 0 else ["-", "0", "0"]
            if done.returncode != 0:
                print(f"FAILED {sdk}: {done.stderr[-1000:]}", flush=True)
            rows.append([sdk, told[0], int(told[1]), int(told[2])])
    right = sum(row[2:] == [50, 50] for row in rows)
    goals = [Goal("SDKs that run the happy path unchanged", float(right), 3.0, "", True)]
    columns = ["SDK", "version", "lines read", "completed"]
    pairs = [dict(zip(columns, row, strict=True)) for row in rows]
    Outcome("server_clients", harness.command_line(), columns, rows, goals, pairs, [], found.quick).publish()


if __name__ == "__main__":
    main()
