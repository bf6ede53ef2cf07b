"""Text that can be stored and sent. Pure."""


def clean_text(text: str) -> str:
    """`text` without NUL and lone surrogates: each becomes U+FFFD. Surrogate pairs are joined."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def held_back(text: str) -> tuple[str, str]:
    """The text, and the half of a surrogate pair at its end, or nothing: the other half may come next."""
    return (text[:-1], text[-1]) if "\ud800" <= text[-1:] <= "\udbff" else (text, "")
