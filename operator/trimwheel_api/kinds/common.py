"""What all kinds share: metadata, conditions, and how a pydantic model becomes object JSON.

The kinds derive from `Spec` (unknown fields refused) and `Status` (unknown fields kept out of the
way, so that an older reader survives a newer writer).
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from trimwheel_api.names import API_VERSION


def to_key(name: str) -> str:
    """snake_case -> camelCase; `run_id` and `rollout_uid` become `runID` and `rolloutUID`."""
    camel = to_camel(name)
    for plain, upper in (("Uid", "UID"), ("Url", "URL"), ("Ttl", "TTL"), ("Id", "ID")):
        if camel.endswith(plain):
            camel = camel[: -len(plain)] + upper
    return camel


class Spec(BaseModel):
    """Base of everything a user writes."""

    model_config = ConfigDict(alias_generator=to_key, populate_by_name=True, extra="forbid")


class Status(BaseModel):
    """Base of everything a controller writes."""

    model_config = ConfigDict(alias_generator=to_key, populate_by_name=True, extra="ignore")


class Condition(Status):
    """`metav1.Condition`, to the letter."""

    type: str = Field(
        description="CamelCase name of what is asserted.",
        max_length=316,
        pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        description="CamelCase reason of the last transition.",
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    )
    message: str = Field(default="", description="A sentence for a person.", max_length=32768)
    last_transition_time: str = Field(
        description="When the status last flipped.", json_schema_extra={"format": "date-time"}
    )
    observed_generation: int = Field(
        default=0, description="metadata.generation that was looked at.", ge=0
    )


class ConditionedStatus(Status):
    """A status with conditions and the generation they speak of."""

    observed_generation: int = Field(
        default=-1, description="Generation of the spec that this status speaks of; -1 before any."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready, Reconciling, Stalled and the kind's own conditions.",
        max_length=16,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )

    def condition(self, kind: str) -> Condition | None:
        """The condition of a type, if it was ever set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """Whether a condition is True."""
        found = self.condition(kind)
        return found is not None and found.status == "True"


class OwnerReference(Status):
    """The part of an owner reference that Trimwheel reads and writes."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class Metadata(Status):
    """The part of `metadata` that Trimwheel reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: list[OwnerReference] = Field(default_factory=list)


SpecT = TypeVar("SpecT", bound=Spec)
StatusT = TypeVar("StatusT", bound=Status)


class Resource(BaseModel, Generic[SpecT, StatusT]):
    """An object of ours as the API server returns it."""

    model_config = ConfigDict(alias_generator=to_key, populate_by_name=True, extra="ignore")

    api_version: str = API_VERSION
    kind: str
    metadata: Metadata
    spec: SpecT
    status: StatusT

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.metadata.namespace, self.metadata.name

    @property
    def name(self) -> str:
        """metadata.name."""
        return self.metadata.name


def dump(model: BaseModel) -> dict[str, Any]:
    """JSON values of a spec or status, camelCase, unset optional fields left out."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def ruled(*rules: dict[str, Any]) -> ConfigDict:
    """Cross-field CEL rules of a spec, beside the settings that it inherits."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": list(rules)})


def immutable(what: str) -> dict[str, Any]:
    """CEL: this whole object never changes."""
    return {
        "rule": "self == oldSelf",
        "message": f"{what} is immutable: create another object instead",
    }
