"""Says at the end what was rendered and what it was held against: `make kubernetes` is to be believed."""

from typing import Any

from tests.kubernetes import chart, crds


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rendered = chart.looked_at()
    if not rendered:
        return  # other tests than these were asked for
    objects = [each for name in rendered for each in chart.rendered(name)]
    kinds = sorted({each["kind"] for each in objects})
    custom = ", ".join(sorted({kind for _, kind in crds.validators()})) or f"no custom resources: {crds.ABSENT}"
    terminalreporter.section("the chart")
    terminalreporter.line(
        f"Rendered by Helm {chart.ENGINE} in {len(rendered)} ways ({', '.join(chart.VALUES_FILES)}, and by switches): "
        f"{len(objects)} objects of {len(kinds)} kinds."
    )
    terminalreporter.line(f"Held against Kubernetes {' and '.join(crds.KUBERNETES)}, and against {custom}.")
