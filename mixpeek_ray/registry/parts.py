"""What the registry actor is made of, put together from the store's contents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from mixpeek_ray.core.errors import ModelNotFoundError
from mixpeek_ray.registry.accounts import Accounts, load_or_create_secret
from mixpeek_ray.registry.actor import RegistryConfig
from mixpeek_ray.registry.alias_guard import AliasWatch, RecentCounts
from mixpeek_ray.registry.aliases import Aliases
from mixpeek_ray.registry.builtin import BuiltinModels
from mixpeek_ray.registry.deployer import Deployer
from mixpeek_ray.registry.housekeeping import Housekeeper
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.quarantine import Quarantine, is_quarantined
from mixpeek_ray.registry.state import ModelCatalog
from mixpeek_ray.registry.uploads import Uploads
from mixpeek_ray.registry.versions import Versions
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.records import RecordStore
from mixpeek_ray.store.uploads import UploadStore


@dataclass(frozen=True, kw_only=True)
class RegistryParts:
    """The actor's collaborators."""

    catalog: ModelCatalog
    deployer: Deployer
    quarantine: Quarantine
    versions: Versions
    aliases: Aliases
    accounts: Accounts
    uploads: Uploads
    housekeeper: Housekeeper
    builtin: BuiltinModels
    alias_watch: AliasWatch

    @classmethod
    def restore(cls, config: RegistryConfig, *, first_start: bool) -> Self:
        """Return parts that know everything the store holds; deployed models are on their way back.

        Blocks on the store, and must run on the actor's event loop. ``first_start``: this platform just started, so
        no upload can be under way and left-overs belong to nobody.
        """
        store = open_store(config.store_url)
        records = RecordStore(store)
        catalog = ModelCatalog()
        manifests = records.load_manifests()
        catalog.restore(manifests.records)
        locks = KeyedLocks()
        deployer = Deployer(
            catalog,
            records,
            locks,
            store_url=config.store_url,
            spool_dir=config.spool_dir,
            pool_limit=config.pool_limit,
        )
        accounts = Accounts(records, load_or_create_secret(Path(config.secret_path)))
        if config.dev_key_path is not None:
            accounts.bootstrap_development(Path(config.dev_key_path))
        uploads = Uploads(catalog, UploadStore(store), lifetime=timedelta(seconds=config.upload_lifetime_s))
        housekeeper = Housekeeper(catalog, records, uploads)
        if first_start:
            housekeeper.sweep(archives=not manifests.problems)
        quarantine = Quarantine(catalog, records, locks, deployer)
        _resume(records, deployer, quarantine)
        aliases = Aliases(catalog, records, is_coming_back=deployer.is_coming_back)
        return cls(
            catalog=catalog,
            deployer=deployer,
            quarantine=quarantine,
            versions=Versions(catalog, records, locks, deployer),
            aliases=aliases,
            accounts=accounts,
            uploads=uploads,
            housekeeper=housekeeper,
            builtin=BuiltinModels.of(config),
            alias_watch=AliasWatch(aliases, RecentCounts().ask),
        )


def _resume(records: RecordStore, deployer: Deployer, quarantine: Quarantine) -> None:
    for marker in records.load_deployments().records:
        try:
            if is_quarantined(marker):
                quarantine.restore(marker)
            else:
                deployer.resume(marker)
        except ModelNotFoundError:
            # A delete that died after its manifest went: finish it.
            records.delete_deployment(marker.namespace_id, marker.model_id)
