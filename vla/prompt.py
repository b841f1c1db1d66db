"""The words around an instruction, the same in pretraining, fine-tuning and acting."""


def prompt(instruction: str) -> str:
    """The published prompt (OpenVLA's), with the instruction in lower case and without a final full stop."""
    return f"In: What action should the robot take to {instruction.strip().rstrip('.').lower()}?\nOut:"
