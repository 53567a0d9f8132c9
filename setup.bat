@echo off
rem Makes or repairs the environment in venv\ beside this file. Safe to run again at any time.
setlocal
cd /d "%~dp0"
for %%V in (3.13 3.12 3.11) do (
    py -%%V -c "pass" >nul 2>&1 && (
        py -%%V -m kohya_gui.installer %*
        exit /b
    )
)
python -c "import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" >nul 2>&1
if not errorlevel 1 (
    python -m kohya_gui.installer %*
    exit /b
)
echo No Python 3.11, 3.12 or 3.13 was found. Install one from python.org with "Add to PATH" ticked, then run setup.bat again.
exit /b 2
