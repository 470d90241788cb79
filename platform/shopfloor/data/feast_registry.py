"""Feast's registry as an object in a bucket of which its reader may see a part only.

Feast's own store asks for the bucket first, which a team's key for the prefix of its name may not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feast.errors import S3RegistryBucketForbiddenAccess, S3RegistryBucketNotExist
from feast.infra.registry.s3 import S3RegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry


class PrefixRegistryStore(S3RegistryStore):  # type: ignore[misc]
    """Asks for the registry's own object and for nothing else."""

    def __init__(self, registry_config: Any, repo_path: Path) -> None:
        """Take what Feast gives to each of its stores; nothing is asked yet."""
        super().__init__(registry_config, repo_path)
        place = urlsplit(registry_config.path)
        self.bucket, self.key = place.netloc, place.path.lstrip("/")

    def get_registry_proto(self) -> Any:
        """Return the registry.

        Raises:
            FileNotFoundError: There is none yet.
            S3RegistryBucketNotExist: Nor is there the bucket.
            S3RegistryBucketForbiddenAccess: The store does not let us.
        """
        from botocore.exceptions import ClientError

        client = self.s3_client.meta.client
        try:
            content = client.get_object(Bucket=self.bucket, Key=self.key)["Body"].read()
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchBucket":
                raise S3RegistryBucketNotExist(self.bucket) from error
            if code not in {"NoSuchKey", "404"} and not self._is_absent():
                raise S3RegistryBucketForbiddenAccess(self.bucket) from error
            raise FileNotFoundError(f"There is no registry s3://{self.bucket}/{self.key} yet.") from error
        registry = Registry()
        registry.ParseFromString(content)
        return registry

    def _is_absent(self) -> bool:
        """Tell whether there is no such object: AWS says so to nobody who may not list the whole bucket."""
        from botocore.exceptions import ClientError

        try:
            listed = self.s3_client.meta.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key, MaxKeys=1)
        except ClientError:
            return False
        return not listed.get("KeyCount", 0)
