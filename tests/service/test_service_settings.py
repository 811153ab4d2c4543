from __future__ import annotations

from pathlib import Path

from service.settings import PREFIX, Settings

TABLE = Path(__file__).parents[2] / "docs" / "settings.md"


def rows() -> list[str]:
    """The table as the settings themselves give it."""

    def shown(default: object) -> str:
        return str(default).lower() if isinstance(default, bool) else "" if default in (None, "", ()) else str(default)

    return [
        f"| `{PREFIX}{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_the_table_of_settings_is_true() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    written = [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith(f"| `{PREFIX}")]
    wanted = rows()
    assert written == wanted, f"{TABLE.name} wants:\n" + "\n".join(wanted)
