"""GET /models: the served models with their limits and defaults."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.core.catalog import Catalog, Defaults, Limits
from service.core.params import Name
from service.dependencies import UseCatalog

router = APIRouter()


class ModelView(BaseModel):
    """One served model. Sizes in pixels."""

    name: Name
    title: str
    adapters: list[Name]
    controlnets: list[Name]
    limits: Limits
    defaults: Defaults


class Models(BaseModel):
    """All served models, and the default one."""

    default: Name
    models: list[ModelView]


@router.get("/models", operation_id="list_models")
async def list_models(catalog: UseCatalog) -> Models:
    """Models with their adapters, ControlNets, limits and defaults."""
    return models_of(catalog)


def models_of(catalog: Catalog) -> Models:
    """The public part of a catalog: no paths and no repositories."""
    return Models(
        default=catalog.default,
        models=[
            ModelView(
                name=name,
                title=entry.title,
                adapters=list(entry.adapters),
                controlnets=list(entry.controlnets),
                limits=entry.limits,
                defaults=entry.defaults,
            )
            for name, entry in catalog.models.items()
        ],
    )
