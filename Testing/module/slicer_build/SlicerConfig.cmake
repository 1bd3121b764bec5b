# Stands in for a build tree of Slicer: its folders, and the macros that this extension calls. They do what Slicer's do
# with files: copy what is listed into the build tree, and install all that lies there.
#
# With folders of Slicer's and CTK's own CMake files in the environment variable SLICER_CMAKE (";" between: Slicer's
# CMake and Base/QTCore/Testing/Python, CTK's CMake), their macros are taken instead.
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.11/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ./${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
set(Slicer_LAUNCHER_EXECUTABLE ${CMAKE_COMMAND})
set(Slicer_USE_FILE CTest)
set(Slicer_EXTENSION_GENERATE_CONFIG CMakeParseArguments) # which does nothing
set(Slicer_EXTENSION_CPACK CPack)

if(DEFINED ENV{SLICER_CMAKE})
  set(slicer_folders $ENV{SLICER_CMAKE})
  list(PREPEND CMAKE_MODULE_PATH ${slicer_folders})
  find_path(CTK_CMAKE_DIR ctkMacroCompilePythonScript.cmake PATHS ${slicer_folders} NO_DEFAULT_PATH REQUIRED)
  find_path(Slicer_PYTHON_MODULE_TEST_TEMPLATES_DIR qSlicerModuleGenericTest.py.in
    PATHS ${slicer_folders} NO_DEFAULT_PATH REQUIRED)
  set(Slicer_USE_PYTHONQT ON)
  set(Slicer_ExternalData_DATA_MANAGEMENT_TARGET SlicerData)
  set(PYTHONINTERP_FOUND TRUE)
  set(PYTHONLIBS_FOUND TRUE)
  set(PYTHON_LIBRARIES ${PYTHON_EXECUTABLE}) # its folder is searched for libraries while scripts are compiled
  include(ExternalData)
  include(ctkFunctionExtractOptimizedLibrary)
  include(ctkMacroCompilePythonScript)
  include(SlicerMacroBuildScriptedModule)
  include(SlicerMacroPythonTesting)
  include(SlicerMacroConfigureGenericPythonModuleTests)
  return()
endif()

macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(COPY "NO_INSTALL_SUBDIR" "TARGET_NAME;DESTINATION_DIR;INSTALL_DIR" "SCRIPTS;RESOURCES" ${ARGN})
  foreach(file IN LISTS COPY_SCRIPTS COPY_RESOURCES)
    configure_file(${CMAKE_CURRENT_SOURCE_DIR}/${file} ${COPY_DESTINATION_DIR}/${file} COPYONLY)
  endforeach()
  install(DIRECTORY ${COPY_DESTINATION_DIR}/ DESTINATION ${COPY_INSTALL_DIR})
endmacro()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  ctkMacroCompilePythonScript(
    TARGET_NAME ${MODULE_NAME}
    SCRIPTS ${MODULE_SCRIPTS}
    RESOURCES ${MODULE_RESOURCES}
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    NO_INSTALL_SUBDIR
    )
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(UNIT "" "SCRIPT" "" ${ARGN})
  get_filename_component(unit ${UNIT_SCRIPT} NAME_WE)
  add_test(NAME py_${unit} COMMAND ${Slicer_LAUNCHER_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/${UNIT_SCRIPT})
endmacro()
