"""The paper's analyses: instability (Sec. 3.1), anchors (Sec. 3.2), curves (Fig. 1 and 7) and cost (Sec. 5.6.4)."""
