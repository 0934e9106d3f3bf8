"""GET /v1/profiles: what can be asked of this server, and under which licences."""

from dataclasses import asdict

from fastapi import APIRouter

from jobs import PROFILES
from service.context import ContextDep
from service.problems import problem_responses
from service.schemas import LimitsView, ProfileList, ProfileView

router = APIRouter(tags=["profiles"])


@router.get("/v1/profiles", responses=problem_responses())
def list_profiles(context: ContextDep) -> ProfileList:
    """Every profile with its licences and whether a worker serves it now, and this server's limits."""
    settings = context.settings
    workers = context.heartbeats.workers()
    installed = {name for name, profile in PROFILES.items() if profile.is_bundled}
    installed |= {name for worker in workers for name in worker.profiles}
    profiles = [
        ProfileView.model_validate(
            asdict(profile)
            | {
                "is_installed": name in installed,
                "reason": "" if name in installed else profile.how_to_install,
                "is_default": name == settings.default_profile,
                "is_served": name in settings.profiles,
                "num_ready_workers": sum(w.is_ready and name in w.profiles for w in workers),
                "queue_depth": context.queue.depth(name),
            }
        )
        for name, profile in PROFILES.items()
    ]
    return ProfileList(profiles=profiles, limits=LimitsView.model_validate(settings, from_attributes=True))
