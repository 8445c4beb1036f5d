"""GET /models: the served models with their limits and defaults."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.core.catalog import Catalog, Defaults, Limits
from service.core.param_types import Name, Preprocessor
from service.dependencies import UseCatalog

router = APIRouter()


class ModelView(BaseModel):
    """One served model. Sizes in pixels."""

    name: Name
    title: str
    adapters: list[Name]
    family: Name
    controlnets: list[Name]
    t2i_adapters: list[Name]
    preprocessors: list[Preprocessor]
    loras: list[Name]
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
                family=entry.family,
                controlnets=list(entry.controlnets),
                t2i_adapters=list(entry.t2i_adapters),
                preprocessors=list(entry.preprocessors),
                loras=list(entry.loras),
                limits=entry.limits,
                defaults=entry.defaults,
            )
            for name, entry in catalog.models.items()
        ],
    )
