from typing import Any

from veza.database import ensure_running
from veza.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self) -> dict[str, Any]:
        socket_directory = ensure_running(self.settings_dict["EMBEDDED_DIRECTORY"])
        return {**super().get_connection_params(), "host": socket_directory}
