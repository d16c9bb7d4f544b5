"""What a server of scores offers, as an OpenAPI document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rwk.rewards.score_request import FORMATS, Limits

ERRORS = {
    "400": "The request cannot be read, or the number of prompts does not fit.",
    "404": "No such address or reward.",
    "405": "The address takes another method.",
    "408": "The request took too long to arrive.",
    "411": "The request has no Content-Length.",
    "413": "Too many bytes, images, pixels or letters.",
    "415": "Neither application/json nor multipart/form-data.",
    "500": "The reward failed.",
    "503": "The server is busy or shutting down; try again after Retry-After seconds.",
}


def openapi(rewards: list[str], limits: Limits) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server.

    Args:
        rewards: names that are served.
        limits: what a request may hold.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rwk serve",
            "version": version("rwk"),
            "description": "Scores of images by reward models. Larger is better; null where there is no score, "
            f"with a note. A request may hold {limits.body:,} bytes, {limits.images} images and {limits.pixels:,} "
            f"pixels; images are {', '.join(FORMATS)}.",
        },
        "paths": {
            "/health": {"get": _operation("health", "Whether the server takes requests.", "Health", "503")},
            "/rewards": {"get": _operation("rewards", "The rewards that are served, and the limits.", "Rewards")},
            "/openapi.json": {"get": _operation("openapi", "This document.", None)},
            "/score": {"post": _score()},
        },
        "components": {"schemas": _schemas(rewards, limits)},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(name: str, summary: str, schema: str | None, *errors: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref(schema) if schema else {"type": "object"}}}
    fault = {"application/json": {"schema": _ref("Error")}}
    answers: dict[str, Any] = {"200": {"description": summary, "content": content}}
    for status in errors:
        answers[status] = {"description": ERRORS[status], "content": fault}
    return {"operationId": name, "summary": summary, "responses": answers}


def _score() -> dict[str, Any]:
    body = {
        "application/json": {"schema": _ref("ScoreRequest")},
        "multipart/form-data": {"schema": _ref("ScoreForm")},
    }
    operation = _operation("score", "One score for each image, in the order of the images.", "Scores", *ERRORS)
    return {**operation, "requestBody": {"required": True, "content": body}}


def _schemas(rewards: list[str], limits: Limits) -> dict[str, Any]:
    text, number, truth = {"type": "string"}, {"type": ["number", "null"]}, {"type": "boolean"}
    count = {"type": "integer", "minimum": 0}
    reward = {"enum": rewards, "description": "May be left out where one reward is served."}
    prompts = {
        "type": "array",
        "items": {"type": "string", "maxLength": limits.prompt},
        "description": "One for each image; may be left out where the reward needs none.",
    }
    sizes = {"type": "array", "minItems": 1, "maxItems": limits.images}
    files = {**sizes, "items": {"type": "string", "contentEncoding": "base64"}}
    spec = {
        **dict.fromkeys(("name", "unit", "licence", "source"), text),
        **dict.fromkeys(("low", "high"), {**number, "description": "null where there is no bound."}),
        **dict.fromkeys(("needs_prompt", "deterministic", "differentiable"), truth),
    }
    bounds = dict.fromkeys(("body", "images", "pixels", "prompt"), count)
    waiting = {"type": "object", "additionalProperties": count}
    return {
        "ScoreRequest": _object({"reward": reward, "images": files, "prompts": prompts}, ["images"]),
        "ScoreForm": _object({"reward": reward, "images": {**sizes, "items": {}}, "prompts": prompts}, ["images"]),
        "Scores": _object(
            {
                "reward": text,
                "values": {"type": "array", "items": number},
                "notes": {"type": "array", "items": text, "description": "Why a value is null, or what was said."},
            }
        ),
        "Spec": _object(spec),
        "Rewards": _object({"rewards": {"type": "array", "items": _ref("Spec")}, "limits": _object(bounds)}),
        "Health": _object({"status": {"const": "ok"}, "waiting": waiting}),
        "Error": _object({"error": {"type": "string", "description": "One sentence."}}),
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
