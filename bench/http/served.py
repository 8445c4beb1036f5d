"""The application for servers that import it by name, as the environment configures it."""

from service.app import create_app
from service.core.settings import load_settings

app = create_app(load_settings())
