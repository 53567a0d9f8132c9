# Makes or repairs the environment in venv\ beside this file. Safe to run again at any time.
$ErrorActionPreference = "Stop"
Set-Location -LiteralPath $PSScriptRoot
$check = "import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
foreach ($candidate in @(@("py", "-3.13"), @("py", "-3.12"), @("py", "-3.11"), @("python3"), @("python"))) {
    $program = $candidate[0]
    $prefix = @($candidate | Select-Object -Skip 1)
    if (-not (Get-Command $program -ErrorAction SilentlyContinue)) { continue }
    & $program @prefix -c $check 2>$null
    if ($LASTEXITCODE -eq 0) {
        & $program @prefix -m kohya_gui.installer @args
        exit $LASTEXITCODE
    }
}
Write-Host "No Python 3.11, 3.12 or 3.13 was found. Install one from python.org, then run setup.ps1 again."
exit 2
