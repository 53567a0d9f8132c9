@echo off
rem Starts the page; sets the environment up first where that is missing or unfinished.
setlocal
cd /d "%~dp0"
set "PYTHONUTF8=1"
if not exist "venv\Scripts\python.exe" goto setup
"venv\Scripts\python.exe" -m kohya_gui.installer --is-current
if errorlevel 1 goto setup
goto start
:setup
call setup.bat
if errorlevel 1 (
    pause
    exit /b 1
)
:start
"venv\Scripts\python.exe" kohya_gui.py %*
if errorlevel 1 pause
