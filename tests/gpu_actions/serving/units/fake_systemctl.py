"""A recorded interface of systemctl 252: answers as the real one does for the verbs that the driver uses, records its calls.

The answers of `show` were recorded from systemd 252 (Debian 12). State is a JSON file in FAKE_SYSTEMD_DIR.
"""

import json
import os
import sys
from pathlib import Path

DEFAULT = {
    "LoadState": "loaded",
    "ActiveState": "inactive",
    "SubState": "dead",
    "Result": "success",
    "MainPID": "0",
    "NRestarts": "0",
    "UnitFileState": "disabled",
    "TimeoutStopUSec": "1min 30s",
    "ControlGroup": "",
    "ExecMainStartTimestampMonotonic": "0",
    "DropInPaths": "",
}


def main() -> int:
    here = Path(os.environ["FAKE_SYSTEMD_DIR"])
    kept = here / "state.json"
    arguments = [word for word in sys.argv[1:] if word not in {"--no-pager", "--no-ask-password"}]
    user = "--user" in arguments
    arguments = [word for word in arguments if word != "--user"]
    with (here / "calls").open("a") as calls:
        print(*(["--user"] if user else []), *arguments, file=calls)
    state = DEFAULT | (json.loads(kept.read_text()) if kept.exists() else {})
    folder = here / "drop-ins" / "vllm-tp.service.d"
    verb = arguments[0]
    if verb == "show":
        drop_ins = " ".join(str(path) for path in sorted(folder.glob("*.conf"))) if folder.exists() else ""
        for key in arguments[-1].removeprefix("--property=").split(","):
            print(f"{key}={state[key] if key != 'DropInPaths' else drop_ins}")
        return 0
    if verb == "start":
        if state["LoadState"] == "masked":
            print("Failed to start vllm-tp.service: Unit vllm-tp.service is masked.", file=sys.stderr)
            return 1
        state |= {"ActiveState": "active", "SubState": "running", "MainPID": str(os.getppid())}
        state["ExecMainStartTimestampMonotonic"] = "1000000"
        if os.environ.get("FAKE_FAILS"):
            state |= {"ActiveState": "failed", "SubState": "failed", "MainPID": "0", "Result": "exit-code"}
    if verb == "stop" and not state.get("stubborn"):
        state |= {"ActiveState": "inactive", "SubState": "dead", "MainPID": "0"}
    if verb == "kill":
        state |= {"ActiveState": "failed", "SubState": "failed", "MainPID": "0", "Result": "signal"}
    if verb == "mask":
        state |= {"LoadState": "masked", "UnitFileState": "masked-runtime"}
    if verb == "unmask" and state["UnitFileState"] == "masked-runtime":
        state |= {"LoadState": "loaded", "UnitFileState": "disabled"}
    if verb == "reset-failed":
        state |= {"ActiveState": "inactive", "SubState": "dead", "Result": "success"}
    kept.write_text(json.dumps(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
