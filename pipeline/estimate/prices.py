"""A price sheet of the operator's, and what a plan costs by it."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StoreUnavailable, UsageError
from pipeline.storage import describe, open_filesystem, redact, without_secrets

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_LONGEST = 1 << 16  # bytes of a sheet


class PriceSheet(BaseModel):
    """What things cost, and who says so when; every price must be stated, 0 where it is none.

    Attributes:
        currency: its three letters or any short name.
        date: of the prices.
        source: where they were read.
        per_worker_hour: a worker's part of its machine.
        per_1000_put_list: thousand requests PUT, POST or LIST.
        per_1000_get_head: thousand requests GET or HEAD.
        per_gigabyte_month: 10^9 bytes stored for a month.
        per_gigabyte_egress: 10^9 bytes read out of the store.
    """

    model_config = ConfigDict(extra="forbid")

    currency: str = Field(min_length=1, max_length=12)
    date: datetime.date
    source: str = Field(min_length=1, max_length=300)
    per_worker_hour: Price
    per_1000_put_list: Price
    per_1000_get_head: Price
    per_gigabyte_month: Price
    per_gigabyte_egress: Price


def load_prices(url: str) -> PriceSheet:
    """The sheet in a TOML file, or a JSON file whose name ends so.

    Raises:
        UsageError: it cannot be read, or lacks a price or has one that is none; one line.
    """
    place = redact(url)
    try:
        return PriceSheet.model_validate(_parsed(url))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "missing":
            raise UsageError(f"--prices {place}: {name} is missing; 0 where it is free") from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(PriceSheet.model_fields)
            raise UsageError(f"--prices {place}: {name} is no price; known: {known}") from None
        got = without_secrets(repr(first["input"]))[:60]
        raise UsageError(f"--prices {place}: {name}: {first['msg']} (got {got})") from None


def _parsed(url: str) -> Any:
    filesystem, path = open_filesystem(url)
    try:
        data: bytes = filesystem.cat_file(path, 0, _LONGEST)
        text = data.decode()
        return json.loads(text) if path.lower().endswith(".json") else tomllib.loads(text)
    except (OSError, StoreUnavailable) as error:
        raise UsageError(f"--prices {redact(url)}: cannot be read: {describe(error)}") from error
    except (ValueError, RecursionError) as error:  # of both languages, and of other encodings
        raise UsageError(f"--prices {redact(url)}: neither TOML nor JSON: {error}") from error


def cost(
    sheet: PriceSheet,
    *,
    worker_hours: float,
    requests: dict[str, int] | None,
    received_gigabytes: float | None,
    stored_gigabytes: float,
) -> dict[str, Any]:
    """The bill, in the sheet's currency, by what it is for; storage recurs every month.

    Args:
        sheet: the prices.
        worker_hours: workers x hours.
        requests: by kind, DELETE is free; None where they were not counted, nor is their cost.
        received_gigabytes: read out of stores; None the same.
        stored_gigabytes: of the result.
    """
    once: dict[str, float | None] = {
        "workers": worker_hours * sheet.per_worker_hour,
        "requests_put_list": _thousands(requests, ("PUT", "POST", "LIST"), sheet.per_1000_put_list),
        "requests_get_head": _thousands(requests, ("GET", "HEAD"), sheet.per_1000_get_head),
        "egress": None
        if received_gigabytes is None
        else received_gigabytes * sheet.per_gigabyte_egress,
    }
    return {
        "currency": sheet.currency,
        "prices_of": sheet.date.isoformat(),
        "prices_from": sheet.source,
        **{name: None if each is None else round(each, 4) for name, each in once.items()},
        "once": round(sum(each or 0.0 for each in once.values()), 4),
        "stored_per_month": round(stored_gigabytes * sheet.per_gigabyte_month, 4),
    }


def _thousands(requests: dict[str, int] | None, kinds: Sequence[str], price: float) -> float | None:
    if requests is None:
        return None
    return sum(requests.get(kind, 0) for kind in kinds) / 1000 * price
