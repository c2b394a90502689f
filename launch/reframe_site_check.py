"""A ReFrame test of a cluster: distqtrl site-check as a job. It fails where a check fails, and tells the remedies.

reframe -C SETTINGS -c launch/reframe_site_check.py -S program=/path/to/.venv/bin/distqtrl -r
"""
# ruff: noqa: F821, RUF012 (names and lists in the body of a class are ReFrame's way)

import json

import reframe as rfm
import reframe.utility.sanity as sn


@rfm.simple_test
class DistqtrlSite(rfm.RunOnlyRegressionTest):
    """One task, which starts the ranks itself."""

    descr = "distqtrl site-check"
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    program = variable(str, value="distqtrl")
    ranks = variable(int, value=2)
    time_limit = "10m"

    @run_before("run")
    def words(self):
        self.executable = self.program
        self.executable_opts = ["site-check", "--json", "--ranks", str(self.ranks), "--directory", "runs"]

    def told(self):
        """The object that site-check prints."""
        return json.loads(sn.extractsingle(r'^\{"format": 1,.*\}$', self.stdout).evaluate())

    @sanity_function
    def nothing_fails(self):
        failed = [check for check in self.told()["checks"] if check["status"] == "failed"]
        text = "; ".join(f"{check['name']}: {check['found']}. Remedy: {check['remedy']}" for check in failed)
        return sn.assert_eq(len(failed), 0, msg=text)

    @performance_function("s")
    def took(self):
        return self.told()["took_s"]
