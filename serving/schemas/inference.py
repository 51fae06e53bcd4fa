"""Bodies of the Open Inference Protocol (routes/inference_protocol.py)."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, str | int | float | bool]


class InferTensor(BaseModel):
    """A tensor of a request: its numbers in `data`, flat or nested, or behind the JSON (`binary_data_size`)."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class InferOutput(BaseModel):
    """An output that is wanted; `binary_data` says whether as bytes."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """A request of the protocol. `parameters` say what tensors cannot: `bands` (`g,r,i`), `space`, `unit`."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    parameters: Parameters = {}
    inputs: Annotated[list[InferTensor], Field(min_length=1)]
    outputs: list[InferOutput] | None = None


class InferAnswer(BaseModel):
    """An answer of the protocol."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[InferTensor]
