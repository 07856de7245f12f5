"""What most answers do without is not imported for them."""

import subprocess
import sys


def test_llguidance_comes_with_the_first_answer_that_is_held_to_something():
    code = "import sys, dali.llm; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
