#!/usr/bin/env bash
# torch 2.14.1 with onnxscript 0.7.2: two equal clamps of one tensor are exported to an ONNX file that nobody can load, and the
# export reports success.
#
# The optimizer merges what the two have in common and makes each Min of a Max a Clip; the second keeps an input that is no
# node's output any more. With optimize=False the file is fine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6

cat > "$folder/export.py" <<'PYTHON'
import logging, re, sys, warnings
import onnx, onnxruntime, torch

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


class Twice(torch.nn.Module):
    def forward(self, x):
        return x.clamp(0, 1) + 1, x.clamp(0, 1).exp()


def outcome(function):
    try:
        function()
    except Exception as error:
        return f"refuses it for the input {re.search(r'[a-z]+_min_1', str(error))[0]}"
    return "takes it"


path = sys.argv[1]
for optimize in (True, False):
    torch.onnx.export(Twice(), (torch.rand(3),), path, dynamo=True, optimize=optimize, verbose=False)
    print(f"optimize={optimize}: exported")
    print("  onnx's checker", outcome(lambda: onnx.checker.check_model(path)))
    print("  onnxruntime", outcome(lambda: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])))
PYTHON

"$folder/venv/bin/python" "$folder/export.py" "$folder/twice.onnx" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
optimize=True: exported
  onnx's checker refuses it for the input x_min_1
  onnxruntime refuses it for the input x_min_1
optimize=False: exported
  onnx's checker takes it
  onnxruntime takes it
SEEN
