"""The map of a collection, and its objects by number, by the beginning of their ids, and by place on the sky."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from ..formats.binary_answers import wanted_type
from ..formats.bodies import JSON
from ..formats.safetensors_body import SAFETENSORS
from ..formats.table_answers import DEC, OBJECT_ID, RA, TABLE_TYPES, column, table_answer, table_of
from ..index.cone import Cone
from ..maps.map_keeper import MapKeeper
from ..maps.map_points import PROJECTIONS
from ..maps.object_table import ObjectTable
from ..problems import ProblemError, not_found
from ..service import Service
from .documentation import Responses, errors, example
from .raw_documentation import BINARY
from .search_answers import OFFERED
from .search_queries import number_or_null

MOST_POINTS = 1000
"""Objects of one answer."""
PLACES = ("x", "y", "ra", "dec", "modalities")
"""Columns that every map has; labels are the others."""
_WAITING = {"status": "EXECUTING", "detail": "UMAP is being laid out, which takes minutes; pca is there at once"}
"""By the phases of IVOA's UWS."""
RETRY_AFTER_SECONDS = 4
_POINTS = {
    "points": [{"number": 17, "object_id": "39633345008634465"}],
    "num_objects": 200,
    "index_id": "objects-5d1c0a9e7b21",
}
_OBJECTS = {
    "objects": [{"object_id": "39633345008634465", "ra": 150.1, "dec": 2.2, "separation_deg": 0.013}],
    "num_found": 1,
    "next_cursor": None,
}
_SEPARATION = column("separation_deg", pa.float64(), "From the centre of the cone", unit="deg", ucd="pos.angDistance")
CollectionPath = Annotated[str, Path(examples=["objects"])]


def map_routes(service: Service) -> APIRouter:
    """`/v1/collections/{collection}/map`, `.../map/points` and `/v1/objects`."""
    router = APIRouter(tags=["search"])
    keeper = MapKeeper(service.state)

    @router.get(
        "/v1/collections/{collection}/map",
        summary="Where all objects lie on a plane, as columns of float32",
        response_class=Response,
        responses={
            200: {
                "description": "OK",
                "content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}},
            },
            202: {
                "description": "UMAP is being laid out: ask again after Retry-After seconds",
                "content": {"application/json": {"example": _WAITING}},
            },
            304: {"description": "The map is the one that If-None-Match names"},
            **errors(404, 422, 503),
        },
    )
    async def map_columns(
        collection: CollectionPath,
        projection: Annotated[str, Query(description=f"One of {', '.join(PROJECTIONS)}")] = "pca",
        columns: Annotated[
            str, Query(description="Names, joined by commas: x, y, ra, dec, modalities, and labels of the index")
        ] = "x,y",
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A safetensors file with one tensor [objects] for each column; an object's row is its number.

        `pca` is the plane of the two principal components; `umap` is laid out when first asked for, and until then the
        answer is 202, without a map. Vectors are taken relative to the mean of their modality. `ra` and `dec` are
        degrees, NaN where unknown; `modalities` is a sum of bits, named in the metadata by `modality_names`. Metadata:
        `index_id`, `num_objects`, `projection`, `modality_names` (a JSON list), `num_labelled` (of how many objects
        each label is known, a JSON object).
        """
        index = service.collection(collection)
        names = _names(columns, (*PLACES, *index.manifest.labels))

        def work() -> Response:
            plane: np.ndarray | None
            if {"x", "y"} & set(names):
                made, plane = keeper.plane(index, projection)
                if plane is None:
                    return JSONResponse(_WAITING, 202, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
            elif projection in PROJECTIONS:
                made, plane = keeper.map_of(index), np.zeros((0, 2), np.float32)
            else:
                raise not_found("projection", projection, PROJECTIONS)
            tag = f'"{hashlib.sha256(repr((made.index_id, projection, names)).encode()).hexdigest()[:32]}"'
            headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Armillary-Index-Id": made.index_id}
            if if_none_match == tag:
                return Response(status_code=304, headers=headers)
            metadata = {
                "index_id": made.index_id,
                "num_objects": str(len(made.table)),
                "projection": projection,
                "modality_names": json.dumps(made.table.modality_names),
                "num_labelled": json.dumps(made.table.num_labelled),
            }
            tensors = {name: _column(made.table, plane, name) for name in names}
            return Response(safetensors.numpy.save(tensors, metadata), media_type=SAFETENSORS, headers=headers)

        return await service.in_worker(work)

    @router.get(
        "/v1/collections/{collection}/map/points",
        summary="Objects of the map by number, or numbers by object",
        responses=example(_POINTS, 404, 422, 503),
    )
    async def map_points(
        collection: CollectionPath,
        number: Annotated[list[Annotated[int, Query(ge=0)]], Query(max_length=MOST_POINTS)] = [],  # noqa: B006
        object_id: Annotated[list[str], Query(max_length=MOST_POINTS)] = [],  # noqa: B006
        prefix: Annotated[str | None, Query(description="The beginning of an id: the first that have it")] = None,
        columns: Annotated[
            str,
            Query(
                description="What else to tell of each, joined by commas: ra, dec, and labels of the index",
                examples=["ra,dec"],
            ),
        ] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_POINTS)] = 10,
    ) -> JSONResponse:
        """Ids and numbers of objects in the order asked for. An object that is not there has a null.

        An object's number is its row in the columns of the map with the same `index_id`. Of `columns`, what is not
        known is null.
        """
        index = service.collection(collection)
        names = _names(columns, ("ra", "dec", *index.manifest.labels))

        def work() -> JSONResponse:
            made = keeper.map_of(index)
            table = made.table
            points: list[dict[str, Any]] = [
                {"number": one, "object_id": table.id_of(one) if one < len(table) else None} for one in number
            ]
            points += [{"number": table.number_of(one), "object_id": one} for one in object_id]
            if prefix is not None:
                found = table.beginning_with(prefix, 0, limit)
                points += [{"number": one, "object_id": table.id_of(one)} for one in found]
            for point in points:
                point.update(_told(table, point, names))
            return JSONResponse({"points": points, "num_objects": len(table), "index_id": made.index_id})

        return await service.in_worker(work)

    @router.get(
        "/v1/objects",
        summary="Objects near a place on the sky, or all of them in order of id",
        responses=_object_responses(),
    )
    async def objects(
        request: Request,
        ra: Annotated[float | None, Query(ge=0, lt=360, description="Centre, degrees, ICRS", examples=[150.1])] = None,
        dec: Annotated[float | None, Query(ge=-90, le=90, examples=[2.2])] = None,
        radius_deg: Annotated[float | None, Query(gt=0, le=180, examples=[0.5])] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_POINTS)] = 100,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before", max_length=200)] = None,
    ) -> Response:
        """With `ra`, `dec` and `radius_deg` those in the cone, nearest first, with their separation in degrees;
        without them all, by id, with a null for it. `next_cursor` leads to the next page, and is null on the last.

        A cursor ends with the content of the index: after a change of it, 409. By `Accept` the answer is a table, as of
        a search.
        """
        answer_type = wanted_type(request.headers.get("accept"), OFFERED)
        index = service.only_collection()
        given = [value for value in (ra, dec, radius_deg) if value is not None]
        if len(given) not in (0, 3) or any(math.isnan(value) for value in given):
            raise ProblemError("invalid-request", "a cone needs ra, dec and radius_deg together, all of them numbers")

        def work() -> Response:
            made = keeper.map_of(index)
            start = _start(cursor, made.index_id)
            table = made.table
            if ra is not None and dec is not None and radius_deg is not None:
                cone = Cone(ra, dec, radius_deg)
                found = table.in_cone(cone)
                page = found[start : start + limit]
                separation = table.separation(cone, page).tolist()
                count = len(found)
            else:
                count = len(table)
                page = np.arange(start, min(start + limit, count))
                separation = [None] * len(page)
            after = start + len(page)
            next_cursor = f"{made.index_id}:{after}" if after < count else None
            if answer_type != JSON:
                columns = [
                    (OBJECT_ID, table.object_id.take(pa.array(page))),
                    (RA, table.ra[page]),
                    (DEC, table.dec[page]),
                    (_SEPARATION, separation),
                ]
                provenance = service.provenance(index.manifest.space, index)
                return table_answer(table_of(columns), answer_type, provenance, next_cursor=next_cursor)
            return JSONResponse(
                {
                    "objects": [
                        {
                            "object_id": table.id_of(one),
                            "ra": number_or_null(float(table.ra[one])),
                            "dec": number_or_null(float(table.dec[one])),
                            "separation_deg": distance,
                        }
                        for one, distance in zip(page.tolist(), separation, strict=True)
                    ],
                    "num_found": count,
                    "next_cursor": next_cursor,
                }
            )

        return await service.in_worker(work)

    return router


def _names(columns: str, known: Sequence[str]) -> list[str]:
    """The columns that are asked for, each once. Raises ProblemError (404) for one that there is not."""
    names = list(dict.fromkeys(name.strip() for name in columns.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise not_found("column of the map", name, known)
    return names


def _told(table: ObjectTable, point: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    """Values of these columns for one object; null for an object that is not there."""
    number = point["number"]
    if number is None or point["object_id"] is None:
        return dict.fromkeys(names)
    columns = {"ra": table.ra, "dec": table.dec, **table.labels}
    return {name: number_or_null(float(columns[name][number])) for name in names}


def _object_responses() -> Responses:
    described = example(_OBJECTS, 404, 406, 409, 422, 503)
    described[200]["content"] |= dict.fromkeys(TABLE_TYPES, BINARY)
    return described


def _start(cursor: str | None, index_id: str) -> int:
    if cursor is None:
        return 0
    name, _, place = cursor.rpartition(":")
    if not (place.isascii() and place.isdigit() and len(place) <= 12):
        raise ProblemError("invalid-request", f"cursor: expected the next_cursor of an answer, found {cursor!r}")
    if name != index_id:
        raise ProblemError("conflict", "cursor: the index has changed since; begin again without a cursor")
    return int(place)


def _column(table: ObjectTable, plane: np.ndarray, name: str) -> np.ndarray:
    if name in ("x", "y"):
        return np.ascontiguousarray(plane[:, "xy".index(name)])
    if name in ("ra", "dec", "modalities"):
        return np.asarray(getattr(table, name), np.float32)
    return table.labels[name]
