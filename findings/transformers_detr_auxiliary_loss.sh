#!/usr/bin/env bash
# transformers 5.24.0: `auxiliary_loss=True`, a setting of the loss, makes DETR and Conditional DETR another model.
#
# The same weights give the same image other logits and boxes, in evaluation too, so that a pretrained detector is no longer
# itself where it is to be fine-tuned with the losses of all layers. With True the norm of the decoder's end is applied to what
# goes from layer to layer, and then once more; in DETR's own code it is applied for the heads only. Deformable DETR, which has
# no such norm, stays the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 torch==2.14.1 torchvision==0.29.1 scipy==1.17.1 numpy==2.4.6

cat > "$folder/look.py" <<'PYTHON'
import torch
import transformers

transformers.logging.set_verbosity_error()
SIZES = dict(
    d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
    decoder_ffn_dim=32, num_queries=5, num_labels=3, dropout=0.0,
)
RESNET = dict(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))

for name, stages in ("Detr", ["stage4"]), ("ConditionalDetr", ["stage4"]), ("DeformableDetr", ["stage2", "stage3", "stage4"]):
    found = []
    for auxiliary in (False, True):
        backbone = transformers.ResNetConfig(**RESNET, out_features=stages)
        config = getattr(transformers, f"{name}Config")(
            backbone_config=backbone, auxiliary_loss=auxiliary, use_timm_backbone=False, backbone=None,
            use_pretrained_backbone=False, **SIZES
        )
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForObjectDetection")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            found.append(model.eval()(image).logits)
    apart = (found[0] - found[1]).abs().max() / found[0].abs().max()
    print(f"{name}: logits with and without auxiliary_loss are {'the same' if apart < 1e-5 else 'different'}")
PYTHON

"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN'
Detr: logits with and without auxiliary_loss are different
ConditionalDetr: logits with and without auxiliary_loss are different
DeformableDetr: logits with and without auxiliary_loss are the same
SEEN
