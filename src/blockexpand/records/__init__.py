"""Every artifact's record: frozen dataclasses to JSON and YAML and back, strictly. Neither torch nor transformers."""

from blockexpand.records.codec import (
    MAX_ITEMS,
    MAX_TEXT_BYTES,
    WRITTEN_WHEN_SET,
    apply_overrides,
    check,
    dump_json,
    from_plain,
    has_format,
    parse_json,
    read_json,
    read_record,
    read_text,
    read_yaml,
    to_plain,
    with_format,
    write_json,
    write_record,
)
