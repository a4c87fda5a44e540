"""What a model thought before it answered is no answer. Linear in the text."""

import re

# DeepSeek, Qwen and most others; Mistral; Kimi.
_MARKS = re.compile(
    r"<(/?)(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|scratchpad)>|\[(/?)THINK\]|◁(/?)think▷", re.IGNORECASE
)
_ANSWER = re.compile(r"<(?:final[_ -]?)?answer\b", re.IGNORECASE)


def without_thinking(text: str) -> str:
    """``text`` without its thinking parts.

    What stands before an end mark that nothing opened was thought too: templates often open it themselves. Of a part
    that never ends only an ``<answer>`` counts.
    """
    if "hink" not in text and "HINK" not in text and "thought" not in text and "reasoning>" not in text:
        return text
    kept: list[str] = []
    start, inside = 0, False
    for mark in _MARKS.finditer(text):
        if not any(mark.groups()):
            if not inside:
                kept.append(text[start : mark.start()])
                start, inside = mark.end(), True
            continue
        if not inside:
            kept.clear()
        start, inside = mark.end(), False
    if not inside:
        kept.append(text[start:])
    elif answer := _ANSWER.search(text, start):
        kept.append(text[answer.start() :])
    return "".join(kept)
