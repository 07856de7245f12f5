"""A headless Chromium, where this machine has one, and the page in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,800",
)
WAIT = 30  # seconds, for what comes in a moment on a machine that is not busy


class Page:
    """The page as a reader has it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def at(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """What is to be seen of each."""
        return [found.text for found in self.driver.find_elements("css selector", selector)]

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, holds: Any) -> None:
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, WAIT, 0.05, [StaleElementReferenceException])
        try:
            wait.until(lambda driver: holds())
        except TimeoutException:
            raise AssertionError(f"It never came to hold: {self.at('body').text[:2000]}") from None

    def set(self, name: str, value: str) -> None:
        """A setting."""
        if not self.at("#settings").is_displayed():
            self.at("#settings-toggle").click()
        field = self.at(f"[name={name}]")
        field.clear()
        field.send_keys(value)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(text).perform()

    @property
    def focused(self) -> str:
        return str(self.run("return document.activeElement.id"))

    @property
    def idle(self) -> bool:
        return not self.at("#stop").is_enabled()

    def show_in(self, scheme: str) -> None:
        """As whoever prefers "light" or "dark" has it."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the browser has said of the page since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser whose profile is that empty folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
