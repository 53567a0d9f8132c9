# Starts the page; sets the environment up first where that is missing or unfinished.
$ErrorActionPreference = "Stop"
Set-Location -LiteralPath $PSScriptRoot
$env:PYTHONUTF8 = "1"
$python = if ($IsLinux -or $IsMacOS) { "venv/bin/python" } else { "venv\Scripts\python.exe" }
$ready = $false
if (Test-Path -LiteralPath $python) {
    & $python -m kohya_gui.installer --is-current
    $ready = ($LASTEXITCODE -eq 0)
}
if (-not $ready) {
    & (Join-Path $PSScriptRoot "setup.ps1")
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
& $python kohya_gui.py @args
exit $LASTEXITCODE
