#!/usr/bin/env bash
# typer 0.15.1 asks for click>=8.0.0 and so is installed with click 8.5.1, with which --help raises instead of helping.
#
# click 8.2 began to hand a context to make_metavar, and typer's took none. 0.16 takes it; 0.26 brings a click of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet typer==0.15.1 click==8.5.1
"$folder/venv/bin/pip" check

cat > "$folder/hello.py" <<'PYTHON'
import typer


def hello(name: str):
    print(f"Hello {name}")


typer.run(hello)
PYTHON

"$folder/venv/bin/python" "$folder/hello.py" World | tee "$folder/seen"
code=0
COLUMNS=200 "$folder/venv/bin/python" "$folder/hello.py" --help > "$folder/help" 2>&1 || code=$?
{ tail -n 1 "$folder/help"; echo "exit code $code"; } | tee -a "$folder/seen"
diff - "$folder/seen" <<'SEEN'
Hello World
TypeError: TyperArgument.make_metavar() takes 1 positional argument but 2 were given
exit code 1
SEEN
