"""What LoRA methods differ in: one file a method or small family, formulas first, then the Rule."""
